//! The relay as it runs.

use core::ffi::{c_char, c_int};
use core::time::Duration;
use std::ffi::CString;
use std::io;
use std::os::fd::IntoRawFd;

use ::nos_relay::Relay;
use ::nos_relay::embed::{ControlError, Request, Response, Runner};
use parking_lot::Mutex;

use crate::builder::{self, nos_relay_builder, nos_relay_container, read_container, relay_failure};
use crate::failure::{Code, Failure, Outcome, call};
use crate::handle::{Kind, Shared};
use crate::input::{null, optional_place, place, text, value};
use crate::port::{self, nos_relay_port};

/// A relay that runs in this process. All its functions may be called by several threads at once.
#[derive(Debug)]
pub struct nos_relay {
    _opaque: (),
}

/// The work of the control thread, for a thread of the caller's.
#[derive(Debug)]
pub struct nos_relay_runner {
    _opaque: (),
}

static RELAYS: Shared<Relay> = Shared::new(Kind::Relay);
static RUNNERS: Shared<Mutex<Option<Runner>>> = Shared::new(Kind::Runner);

pub(crate) fn add(relay: Relay) -> *mut nos_relay {
    core::ptr::without_provenance_mut(RELAYS.add(relay))
}

pub(crate) fn add_runner(runner: Runner) -> *mut nos_relay_runner {
    core::ptr::without_provenance_mut(RUNNERS.add(Mutex::new(Some(runner))))
}

/// The relay, for as long as it is used: it does not end meanwhile because it is freed.
fn get(relay: *mut nos_relay) -> Result<Relay, Failure> {
    RELAYS
        .get(relay.addr(), "relay")
        .map(|relay| Relay::clone(&relay))
}

fn system(error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotConnected => Code::NOS_RELAY_E_ENDED,
        _ => Code::NOS_RELAY_E_SYSTEM,
    };
    Failure::new(code, error)
}

fn limit(milliseconds: u32) -> Duration {
    // Sockets take no limit of zero.
    Duration::from_millis(u64::from(milliseconds.max(1)))
}

fn control_failure(error: &ControlError) -> Failure {
    let code = match error {
        ControlError::Refused(_) => Code::NOS_RELAY_E_REFUSED,
        ControlError::Timeout { .. } => Code::NOS_RELAY_E_TIMEOUT,
        ControlError::Incomplete(_) | ControlError::NoDaemon(_) => Code::NOS_RELAY_E_ENDED,
        ControlError::Io { error, .. } if error.kind() == io::ErrorKind::NotConnected => {
            Code::NOS_RELAY_E_ENDED
        }
        _ => Code::NOS_RELAY_E_SYSTEM,
    };
    Failure::new(code, error)
}

/// Waits until all containers are attached whose namespaces are there, up to `milliseconds`; the others are
/// attached when they come. The NOS has to answer meanwhile, on another thread or between calls of this
/// with a limit of 0.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_await_ready(relay: *mut nos_relay, milliseconds: u32) -> c_int {
    call(|| {
        let limit = Duration::from_millis(u64::from(milliseconds));
        let ready = get(relay)?.await_ready(limit);
        ready.map_err(|error| relay_failure(&error))
    })
}

/// Asks for a change, or what there is, as over the control socket. `request` is the value of "request" in
/// docs/control.md: {"type":"show","table":"attachments"}. What is answered, a refusal too, is the value of
/// "response", as text that nos_relay_string_free() frees; in the case of an error without an answer it is
/// NULL. `answer` may be NULL, and nothing is told.
///
/// Threads: any, but not the NOS's alone, which has to answer the relay meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_request(
    relay: *mut nos_relay,
    request: *const c_char,
    milliseconds: u32,
    answer: *mut *mut c_char,
) -> c_int {
    call(|| {
        // SAFETY: it is where a result goes.
        let mut place = unsafe { optional_place(answer, "answer") }?;
        if let Some(place) = &mut place {
            place.write(core::ptr::null_mut());
        }
        // SAFETY: it is text.
        let request = unsafe { text(request, "request") }?;
        let request = parse_request(request)?;
        let asked = get(relay)?.request(&request, limit(milliseconds));
        let (response, outcome) = match asked {
            Ok(response) => (response, Ok(())),
            Err(error) => {
                let failure = control_failure(&error);
                match error {
                    ControlError::Refused(refusal) => (Response::Refused(refusal), Err(failure)),
                    _ => return Err(failure),
                }
            }
        };
        if let Some(place) = place {
            place.write(written(&response)?);
        }
        outcome
    })
}

fn parse_request(text: &str) -> Result<Request, Failure> {
    let request = serde_json::from_str(text).map_err(|error| value("request", error))?;
    match request {
        Request::Watch { .. } | Request::TakeOver { .. } => {
            let what = "more than a line follows; use nos_relay_control_socket()";
            Err(value("request", what))
        }
        request => Ok(request),
    }
}

/// As JSON, which has no NUL.
fn written(response: &Response) -> Result<*mut c_char, Failure> {
    let internal = |error: &dyn core::fmt::Display| Failure::new(Code::NOS_RELAY_E_INTERNAL, error);
    let text = serde_json::to_string(response).map_err(|error| internal(&error))?;
    let text = CString::new(text).map_err(|error| internal(&error))?;
    Ok(text.into_raw())
}

/// Frees what nos_relay_request() answered, once.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_string_free(string: *mut c_char) -> c_int {
    call(|| {
        if string.is_null() {
            return Err(null("string"));
        }
        // SAFETY: it is what `written` made, and nobody has freed it.
        drop(unsafe { CString::from_raw(string) });
        Ok(())
    })
}

/// Opens a connection to the relay's control socket, which need not have a path: a stream of lines as
/// docs/control.md says, for instance to watch. The caller closes it.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_control_socket(
    relay: *mut nos_relay,
    descriptor: *mut c_int,
) -> c_int {
    call(|| {
        // SAFETY: it is where the result goes.
        let place = unsafe { place(descriptor, "descriptor") }?;
        let stream = get(relay)?.control_stream();
        let stream = stream.map_err(|error| control_failure(&error))?;
        place.write(stream.into_raw_fd());
        Ok(())
    })
}

/// Attaches a container, besides those of the configuration, within `milliseconds`. One that is attached
/// already, by the same keys, stays as it is.
///
/// Threads: as nos_relay_request().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_attach(
    relay: *mut nos_relay,
    container: *const nos_relay_container,
    milliseconds: u32,
) -> c_int {
    call(|| {
        // SAFETY: as `read_container` wants it.
        let container = unsafe { read_container(container) }?;
        let attached = get(relay)?.attach(&container, limit(milliseconds));
        attached.map(drop).map_err(|error| control_failure(&error))
    })
}

/// Takes a container away that was attached at run time.
///
/// Threads: as nos_relay_request().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_detach(
    relay: *mut nos_relay,
    name: *const c_char,
    milliseconds: u32,
) -> c_int {
    call(|| {
        // SAFETY: it is text.
        let name = unsafe { text(name, "name") }?;
        let detached = get(relay)?.detach(name, limit(milliseconds));
        detached.map(drop).map_err(|error| control_failure(&error))
    })
}

/// Has the relay follow another configuration: what does not differ is not touched. It follows later.
/// Settings of threads and buffers stay as they are.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_reconfigure(
    relay: *mut nos_relay,
    builder: *mut nos_relay_builder,
) -> c_int {
    call(|| {
        let (relay, builder) = (get(relay)?, builder::cloned(builder)?);
        let wrong = |error| Failure::new(Code::NOS_RELAY_E_CONFIG, error);
        relay.reconfigure(&builder).map_err(wrong)
    })
}

/// Makes the port of another NOS, which takes the place of the one before: that has ended, or is cut off by
/// this. The new one is told every registration.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_join_nos(
    relay: *mut nos_relay,
    port: *mut *mut nos_relay_port,
) -> c_int {
    call(|| {
        // SAFETY: it is where the result goes.
        let place = unsafe { place(port, "port") }?;
        let joined = get(relay)?.join_nos();
        place.write(port::add(joined.map_err(|error| system(&error))?)?);
        Ok(())
    })
}

/// Ends the relay, and waits until everything that it had put in place is taken away. It can still be asked,
/// and says that it has ended, until it is freed. NOS_RELAY_E_* says why it ended before.
///
/// Threads: any; the NOS has better answer meanwhile on another.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_stop(relay: *mut nos_relay) -> c_int {
    call(|| get(relay)?.stop().map_err(|error| relay_failure(&error)))
}

/// Frees a relay. One that was not stopped ends by itself, and nobody waits for it.
///
/// Threads: any; calls of others with this relay that are under way are finished.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_free(relay: *mut nos_relay) -> c_int {
    call(|| RELAYS.remove(relay.addr(), "relay").map(drop))
}

/// Attaches containers and looks after them until the relay is told to stop. The thread blocks meanwhile.
/// The runner is freed, whatever this returns: NOS_RELAY_E_* says why it ended.
///
/// Threads: any, once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_runner_run(runner: *mut nos_relay_runner) -> c_int {
    call(|| match take_runner(runner)? {
        Some(runner) => {
            let ended = runner.run();
            ended.map_err(|error| relay_failure(&error.into()))
        }
        None => Ok(()),
    })
}

/// Frees a runner that is not to run; its relay ends.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nos_relay_runner_free(runner: *mut nos_relay_runner) -> c_int {
    call(|| -> Outcome { take_runner(runner).map(drop) })
}

fn take_runner(runner: *mut nos_relay_runner) -> Result<Option<Runner>, Failure> {
    let removed = RUNNERS.remove(runner.addr(), "runner")?;
    Ok(removed.lock().take())
}
