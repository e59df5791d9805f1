//! From a running process to the next, over the control socket.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::manifest::{Descriptor, FORMAT, Inheritance, Manifest, Memory};
use super::wire::{read_text, receive_descriptors, send_descriptors, send_octet, text_file};
use crate::control::api::{ControlError, Offer, Request, Response, converse};

/// How long the next process may take from the offer until it is prepared.
pub const PREPARE_LIMIT: Duration = Duration::from_secs(30);

/// How long nothing is forwarded at most, until the next process is ready.
pub const READY_LIMIT: Duration = Duration::from_secs(2);

/// How long the next process waits for a step of the running one: longer than that for it.
const STEP_LIMIT: Duration = Duration::from_secs(10);

const PREPARED: u8 = b'P';
const STOPPED: u8 = b'S';
const READY: u8 = b'R';
const GO: u8 = b'G';

/// Why nothing was handed over. The running process goes on.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// It cannot be asked, or refuses.
    #[error("cannot take over: {0}")]
    Refused(#[from] ControlError),
    /// The conversation broke off.
    #[error("the running nos-relay goes on: {what}: {source}")]
    Broken {
        /// When.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What it has cannot be taken up here.
    #[error("what another nos-relay has open cannot be taken up here: {0}")]
    Unfit(String),
}

fn broken(what: &'static str) -> impl FnOnce(io::Error) -> HandoverError {
    move |source| HandoverError::Broken { what, source }
}

/// What is offered to the next process.
#[derive(Debug)]
pub struct Offered<'a> {
    /// What is said of the descriptors.
    pub manifest: &'a Manifest,
    /// The descriptors, in the order of [`Manifest::descriptors`].
    pub descriptors: Vec<BorrowedFd<'a>>,
}

/// Offers everything to the next process, without waiting for it.
///
/// # Errors
///
/// It has gone, or does not read.
pub fn offer(socket: impl AsFd, offered: &Offered<'_>) -> io::Result<()> {
    let manifest = text_file(&serde_json::to_vec(offered.manifest)?)?;
    let mut all = vec![manifest.as_fd()];
    all.extend(&offered.descriptors);
    send_descriptors(socket, &all)
}

/// Tells the next process that nothing is read any more, and what is remembered.
///
/// # Errors
///
/// It has gone.
pub fn send_stopped(socket: impl AsFd, memory: &Memory) -> io::Result<()> {
    let text = text_file(&serde_json::to_vec(memory)?)?;
    send_octet(&socket, STOPPED)?;
    send_descriptors(socket, &[text.as_fd()])
}

/// Tells the next process to go on.
///
/// # Errors
///
/// It has gone.
pub fn send_go(socket: impl AsFd) -> io::Result<()> {
    send_octet(socket, GO)
}

/// What the next process says; `None` when it has said nothing yet. `stopped`: it was told so.
///
/// # Errors
///
/// It has gone, or says something else than it is to say.
pub fn read_signal(mut socket: impl Read, stopped: bool) -> io::Result<Option<()>> {
    let mut octet = [0];
    let expected = if stopped { READY } else { PREPARED };
    loop {
        return match socket.read(&mut octet) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) if octet == [expected] => Ok(Some(())),
            Ok(_) => Err(ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
    }
}

/// The next process's end of the conversation. Dropping it leaves the running one as it is.
#[derive(Debug)]
pub struct Taking {
    stream: UnixStream,
}

impl Taking {
    /// Asks the process whose control socket is at `control` for everything.
    ///
    /// # Errors
    ///
    /// There is none, it refuses, or it says something else.
    pub fn ask(control: &Path) -> Result<(Self, Inheritance), HandoverError> {
        let request = Request::TakeOver { format: FORMAT };
        let (stream, response) = converse(control, &request, STEP_LIMIT)?;
        let Response::HandingOver(Offer { descriptors, .. }) = response else {
            return Err(HandoverError::Unfit("it answers something else".to_owned()));
        };
        let limits = stream
            .set_read_timeout(Some(STEP_LIMIT))
            .and_then(|()| stream.set_write_timeout(Some(STEP_LIMIT)));
        limits.map_err(broken("limiting the conversation"))?;
        let received = Self::receive(&stream, descriptors);
        let inheritance = received.map_err(broken("receiving what it has"))?;
        Ok((Self { stream }, inheritance))
    }

    fn receive(stream: &UnixStream, count: u32) -> io::Result<Inheritance> {
        let count = usize::try_from(count).map_err(io::Error::other)?;
        let mut all = receive_descriptors(stream, count + 1)?.into_iter();
        let manifest = all.next().ok_or(ErrorKind::UnexpectedEof)?;
        let manifest = read_text(manifest)?;
        let mut inheritance = Inheritance::new(&manifest, [])?;
        let numbers: Vec<Descriptor> = inheritance.manifest.descriptors.clone();
        inheritance.add(numbers.into_iter().zip(all));
        Ok(inheritance)
    }

    /// Says that everything is taken up, and waits until the other reads nothing any more. Returns
    /// what it remembered last.
    ///
    /// # Errors
    ///
    /// The other goes on.
    pub fn prepared(&mut self) -> Result<Memory, HandoverError> {
        let stopped = || -> io::Result<Memory> {
            send_octet(&self.stream, PREPARED)?;
            self.await_octet(STOPPED)?;
            let mut text = receive_descriptors(&self.stream, 1)?;
            let text = text.pop().ok_or(ErrorKind::UnexpectedEof)?;
            Ok(serde_json::from_slice(&read_text(text)?)?)
        };
        stopped().map_err(broken("waiting until it stops"))
    }

    /// Says that it can begin, and waits until it shall. The other ends then: see
    /// [`Self::wait_for_end`].
    ///
    /// # Errors
    ///
    /// The other goes on.
    pub fn ready(&mut self) -> Result<(), HandoverError> {
        let told = send_octet(&self.stream, READY).and_then(|()| self.await_octet(GO));
        told.map_err(broken("waiting for its leave"))
    }

    /// Waits until the other has let go of everything.
    ///
    /// # Errors
    ///
    /// It takes too long.
    pub fn wait_for_end(mut self) -> io::Result<()> {
        match self.stream.read(&mut [0]) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn await_octet(&self, expected: u8) -> io::Result<()> {
        let mut octet = [0];
        (&self.stream).read_exact(&mut octet)?;
        match octet == [expected] {
            true => Ok(()),
            false => Err(ErrorKind::InvalidData.into()),
        }
    }
}
