//! Descriptors that C has opened, whose frames have a virtio-net header in front.

use core::ffi::c_int;
use std::io;

use nos_shim::frame::{Frame, Offload, VNET_HEADER};
use nos_shim::packet::{Packet, Rejected};

use crate::failure::{Code, Failure};

#[cold]
fn refused(what: &str, error: &io::Error) -> Failure {
    Failure::new(
        Code::NOS_RELAY_E_SYSTEM,
        format_args!("descriptor: {what}: {error}"),
    )
}

fn internal(error: impl core::fmt::Display) -> Failure {
    Failure::new(Code::NOS_RELAY_E_INTERNAL, error)
}

/// What a call of the system did, done again where a signal came in between; `None` where it would block.
fn octets(mut call: impl FnMut() -> isize) -> io::Result<Option<usize>> {
    loop {
        if let Ok(octets) = usize::try_from(call()) {
            return Ok(Some(octets));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// Descriptors that [`wait`] waits for, besides the port's.
pub(crate) const MAX_WAITS: usize = 15;

/// Blocks until one of the descriptors can be read from, or a signal comes.
pub(crate) fn wait(descriptors: &[c_int], port: c_int, milliseconds: c_int) -> Result<(), Failure> {
    let all = descriptors.iter().take(MAX_WAITS).copied().chain([port]);
    let mut waits = [libc::pollfd {
        fd: -1,
        events: 0,
        revents: 0,
    }; MAX_WAITS + 1];
    for (wait, fd) in waits.iter_mut().zip(all) {
        (wait.fd, wait.events) = (fd, libc::POLLIN);
    }
    // Those that are none are not looked at (poll(2)).
    // SAFETY: there are so many of them.
    let count = unsafe {
        libc::poll(
            waits.as_mut_ptr(),
            waits.len() as libc::nfds_t,
            milliseconds,
        )
    };
    let error = io::Error::last_os_error();
    if count >= 0 || error.kind() == io::ErrorKind::Interrupted {
        return Ok(());
    }
    Err(refused("poll", &error))
}

/// Reads a frame into the buffer, and parses it; `None` if there is none to be read now.
pub(crate) fn read(
    descriptor: c_int,
    mut frame: Frame,
) -> Result<Option<Result<Packet, Rejected>>, Failure> {
    // The header lies in front of the frame: both come by one call.
    let area = frame.receive_area(VNET_HEADER).map_err(internal)?;
    let (start, room) = (area.as_mut_ptr(), area.len());
    // SAFETY: there is room for so many octets, which nobody else uses.
    let read = octets(|| unsafe { libc::read(descriptor, start.cast(), room) });
    let read = read.map_err(|error| refused("read", &error))?;
    let Some(read) = read else { return Ok(None) };
    let header = area.first_chunk::<VNET_HEADER>().copied();
    let (Some(length), Some(header)) = (read.checked_sub(VNET_HEADER), header) else {
        let message = format_args!("descriptor: {read} octets have no virtio-net header");
        return Err(Failure::new(Code::NOS_RELAY_E_SYSTEM, message));
    };
    frame.set_len(length).map_err(internal)?;
    Ok(Some(match Offload::from_virtio(&header) {
        Ok(offload) => {
            frame.set_offload(offload);
            Packet::parse(frame)
        }
        Err(reason) => Err(Rejected { frame, reason }),
    }))
}

/// Writes a packet.
pub(crate) fn write(descriptor: c_int, packet: Packet) -> Result<(), Failure> {
    let headers = u16::try_from(packet.payload_offset()).unwrap_or(u16::MAX);
    let header = packet.frame().offload().to_virtio(headers);
    let mut frame = packet.into_frame();
    let area = frame.with_headroom(VNET_HEADER).map_err(internal)?;
    let Some(front) = area.first_chunk_mut::<VNET_HEADER>() else {
        return Err(internal("a frame has no room for a header"));
    };
    *front = header;
    let (start, length) = (area.as_ptr(), area.len());
    // SAFETY: there are so many octets, which nobody else writes.
    let written = octets(|| unsafe { libc::write(descriptor, start.cast(), length) });
    match written.map_err(|error| refused("write", &error))? {
        Some(written) if written == length => Ok(()),
        Some(_) => Err(refused("write", &io::ErrorKind::WriteZero.into())),
        None => Err(refused("write", &io::ErrorKind::WouldBlock.into())),
    }
}
