//! What C passes, looked at before it is used.

use core::ffi::{CStr, c_char};
use core::fmt;
use core::mem::MaybeUninit;

use crate::failure::{Code, Failure};

/// An argument, or one of several that it points to, as errors call it.
#[derive(Clone, Copy)]
pub(crate) enum Name {
    Argument(&'static str),
    Element(&'static str, usize),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(name) => f.write_str(name),
            Self::Element(name, index) => write!(f, "{name}[{index}]"),
        }
    }
}

impl From<&'static str> for Name {
    fn from(name: &'static str) -> Self {
        Self::Argument(name)
    }
}

#[cold]
pub(crate) fn null(name: impl fmt::Display) -> Failure {
    Failure::new(Code::NOS_RELAY_E_NULL, format_args!("{name} is NULL"))
}

#[cold]
fn misaligned(name: impl fmt::Display, address: usize, alignment: usize) -> Failure {
    let message = format_args!("{name}: {address:#x} is not a multiple of {alignment}");
    Failure::new(Code::NOS_RELAY_E_ALIGNMENT, message)
}

#[cold]
pub(crate) fn value(name: impl fmt::Display, what: impl fmt::Display) -> Failure {
    Failure::new(Code::NOS_RELAY_E_VALUE, format_args!("{name}: {what}"))
}

#[inline]
fn check<T>(pointer: *const T, name: impl fmt::Display) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    if !pointer.is_aligned() {
        return Err(misaligned(name, pointer.addr(), align_of::<T>()));
    }
    Ok(())
}

/// Where a result goes.
///
/// # Safety
///
/// Where it points, unless it is NULL or misaligned, is room for a `T` that nobody else uses meanwhile.
#[inline]
pub(crate) unsafe fn place<'a, T>(
    pointer: *mut T,
    name: &'static str,
) -> Result<&'a mut MaybeUninit<T>, Failure> {
    check(pointer, name)?;
    // SAFETY: as the caller says; what is there may be anything.
    Ok(unsafe { &mut *pointer.cast() })
}

/// Where a result goes, or NULL for nowhere.
///
/// # Safety
///
/// As [`place`].
pub(crate) unsafe fn optional_place<'a, T>(
    pointer: *mut T,
    name: &'static str,
) -> Result<Option<&'a mut MaybeUninit<T>>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller says.
    unsafe { place(pointer, name) }.map(Some)
}

/// A value.
///
/// # Safety
///
/// Where it points, unless it is NULL or misaligned, is a `T`.
#[inline]
pub(crate) unsafe fn read<T: Copy>(pointer: *const T, name: impl Into<Name>) -> Result<T, Failure> {
    check(pointer, name.into())?;
    // SAFETY: as the caller says.
    Ok(unsafe { pointer.read() })
}

/// A value that may be missing.
///
/// # Safety
///
/// As [`read`].
#[inline]
pub(crate) unsafe fn optional<T: Copy>(
    pointer: *const T,
    name: &'static str,
) -> Result<Option<T>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller says.
    unsafe { read(pointer, name) }.map(Some)
}

/// A struct that begins with its size, which must be what this library knows.
///
/// # Safety
///
/// Where it points, unless it is NULL or misaligned, is a `size_t`, and as much of a `T` as that says.
pub(crate) unsafe fn sized<T: Copy>(pointer: *const T, name: &'static str) -> Result<T, Failure> {
    check(pointer, name)?;
    // SAFETY: it begins with its size.
    let size = unsafe { pointer.cast::<usize>().read() };
    if size != size_of::<T>() {
        let known = size_of::<T>();
        let message = format_args!("{name}->size is {size}, and the struct has {known} octets");
        return Err(Failure::new(Code::NOS_RELAY_E_SIZE, message));
    }
    // SAFETY: its size is right.
    Ok(unsafe { pointer.read() })
}

#[cold]
fn too_many(name: impl fmt::Display, count: usize) -> Failure {
    let message = format_args!("{name}: {count} are more than memory holds");
    Failure::new(Code::NOS_RELAY_E_SIZE, message)
}

#[inline]
fn check_many<T>(
    pointer: *const T,
    count: usize,
    name: impl fmt::Display + Copy,
) -> Result<(), Failure> {
    check(pointer, name)?;
    let octets = count.checked_mul(size_of::<T>());
    match octets.and_then(|octets| isize::try_from(octets).ok()) {
        Some(_) => Ok(()),
        None => Err(too_many(name, count)),
    }
}

/// Values one behind the other. Of none, the pointer may be anything.
///
/// # Safety
///
/// Where it points, unless it is NULL or misaligned, are so many of `T`, which stay for as long as this is
/// used.
#[inline]
pub(crate) unsafe fn slice<'a, T>(
    pointer: *const T,
    count: usize,
    name: impl Into<Name>,
) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    check_many(pointer, count, name.into())?;
    // SAFETY: as the caller says, and checked.
    Ok(unsafe { core::slice::from_raw_parts(pointer, count) })
}

/// Where several results go. For none, the pointer may be anything.
///
/// # Safety
///
/// Where it points, unless it is NULL or misaligned, is room for so many of `T`, which nobody else uses
/// meanwhile.
#[inline]
pub(crate) unsafe fn places<'a, T>(
    pointer: *mut T,
    count: usize,
    name: &'static str,
) -> Result<&'a mut [MaybeUninit<T>], Failure> {
    if count == 0 {
        return Ok(&mut []);
    }
    check_many(pointer, count, name)?;
    // SAFETY: as the caller says, and checked; what is there may be anything.
    Ok(unsafe { core::slice::from_raw_parts_mut(pointer.cast(), count) })
}

/// Where as many results go as there is room for, at least one.
///
/// # Safety
///
/// As [`places`].
#[inline]
pub(crate) unsafe fn room<'a, T>(
    pointer: *mut T,
    capacity: usize,
    name: &'static str,
) -> Result<&'a mut [MaybeUninit<T>], Failure> {
    if capacity == 0 {
        return Err(no_room(name));
    }
    // SAFETY: as the caller says.
    unsafe { places(pointer, capacity, name) }
}

#[cold]
fn no_room(name: &'static str) -> Failure {
    let message = format_args!("{name}: there is no room for any");
    Failure::new(Code::NOS_RELAY_E_SIZE, message)
}

/// Text.
///
/// # Safety
///
/// Where it points, unless it is NULL, is text that ends with NUL, and stays for as long as this is used.
pub(crate) unsafe fn text<'a>(
    pointer: *const c_char,
    name: impl Into<Name>,
) -> Result<&'a str, Failure> {
    let name = name.into();
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: as the caller says.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|error| {
        let message = format_args!("{name} is not UTF-8 behind octet {}", error.valid_up_to());
        Failure::new(Code::NOS_RELAY_E_TEXT, message)
    })
}

/// Text that may be missing.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(
    pointer: *const c_char,
    name: &'static str,
) -> Result<Option<&'a str>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller says.
    unsafe { text(pointer, name) }.map(Some)
}
