//! What a call returns, and what was wrong.

use core::any::Any;
use core::cell::RefCell;
use core::ffi::{c_char, c_int};
use core::fmt;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What every call returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum nos_relay_code {
    /// It is done.
    NOS_RELAY_OK = 0,
    /// A pointer is NULL that must not be.
    NOS_RELAY_E_NULL = -1,
    /// A handle was freed, is of another kind, or never was one.
    NOS_RELAY_E_HANDLE = -2,
    /// A pointer is not aligned for what it points to.
    NOS_RELAY_E_ALIGNMENT = -3,
    /// A count, a length, or the size of a struct is out of bounds.
    NOS_RELAY_E_SIZE = -4,
    /// Text is not UTF-8.
    NOS_RELAY_E_TEXT = -5,
    /// A number or a text means nothing here.
    NOS_RELAY_E_VALUE = -6,
    /// The handle belongs to another thread.
    NOS_RELAY_E_THREAD = -7,
    /// Something else has to be done before.
    NOS_RELAY_E_ORDER = -8,
    /// There is none of that name.
    NOS_RELAY_E_NOT_FOUND = -9,
    /// The configuration is wrong.
    NOS_RELAY_E_CONFIG = -10,
    /// The relay, the NOS's port table or the kernel does not grant it; nothing has changed.
    NOS_RELAY_E_REFUSED = -11,
    /// It took longer than it was given.
    NOS_RELAY_E_TIMEOUT = -12,
    /// The relay has ended.
    NOS_RELAY_E_ENDED = -13,
    /// There is no room: no buffer is free, the other side does not read, or there are too many handles.
    NOS_RELAY_E_FULL = -14,
    /// Octets are no packet.
    NOS_RELAY_E_MALFORMED = -15,
    /// The system refuses something.
    NOS_RELAY_E_SYSTEM = -16,
    /// A fault of the library: something panicked. Handles that were used may only be freed.
    NOS_RELAY_E_INTERNAL = -17,
}

pub use nos_relay_code as Code;

/// Why a call did not do what it was to.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    #[cold]
    pub(crate) fn new(code: Code, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { code, message }
    }

    fn report(self) -> c_int {
        let code = self.code;
        self.keep();
        code as c_int
    }

    /// Keeps the message for the thread.
    pub(crate) fn keep(self) {
        let Self { message, .. } = self;
        // Names and texts of callers may contain anything but NUL, which ends them.
        let text = CString::new(message.replace('\0', "")).unwrap_or_default();
        // A thread that ends while it fails has nobody left to read it.
        let _ = LAST.try_with(|last| last.replace(text));
    }
}

/// What a call returns inside.
pub(crate) type Outcome = Result<(), Failure>;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs the body of a call. A panic ends here.
#[inline(always)]
pub(crate) fn call(body: impl FnOnce() -> Outcome) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Code::NOS_RELAY_OK as c_int,
        Ok(Err(failure)) => failure.report(),
        Err(panic) => panicked(&*panic),
    }
}

#[cold]
fn panicked(panic: &(dyn Any + Send)) -> c_int {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("no message");
    Failure::new(Code::NOS_RELAY_E_INTERNAL, format_args!("a panic: {said}")).report()
}

/// What was wrong with the last call of this thread that failed, and with which argument: text in English,
/// never NULL, empty if none failed. Valid until the next call that fails on this thread.
///
/// Threads: any, at any time; each has its own.
#[unsafe(no_mangle)]
pub extern "C" fn nos_relay_last_error() -> *const c_char {
    // A thread that is ending has none.
    let last = LAST.try_with(|last| last.borrow().as_ptr());
    last.unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: it is valid until the next failure of this thread.
        let text = unsafe { CStr::from_ptr(nos_relay_last_error()) };
        text.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_ends_here() {
        assert_eq!(last(), "");
        let number = 7;
        assert_eq!(
            call(|| panic!("number {number}")),
            Code::NOS_RELAY_E_INTERNAL as c_int
        );
        assert_eq!(last(), "a panic: number 7");
        assert_eq!(
            call(|| panic!("plain")),
            Code::NOS_RELAY_E_INTERNAL as c_int
        );
        assert_eq!(last(), "a panic: plain");
        assert_eq!(call(|| Ok(())), 0);
        assert_eq!(last(), "a panic: plain", "what succeeds leaves it");
    }

    #[test]
    fn each_thread_has_its_own() {
        let fail = |text: &str| call(|| Err(Failure::new(Code::NOS_RELAY_E_VALUE, text)));
        assert_eq!(fail("a\0b"), Code::NOS_RELAY_E_VALUE as c_int);
        std::thread::spawn(move || {
            assert_eq!(last(), "");
            fail("other");
            assert_eq!(last(), "other");
        })
        .join()
        .unwrap();
        assert_eq!(last(), "ab");
    }
}
