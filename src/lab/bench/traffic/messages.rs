//! Datagrams in bursts: `sendmmsg` and `recvmmsg`.
//!
//! A datagram says which it is, by flow and number, and the rest is [`pattern`], so that nothing
//! has to be copied to make one and one comparison checks it.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::Sizes;
use crate::lab::testbed::pattern;

/// Datagrams of one system call at most.
pub(super) const BATCH: usize = 64;

/// The same for the kernel.
const MOST: libc::c_uint = 64;

/// Number (8 octets), flow (4 octets), both little-endian.
const HEADER: usize = 12;

/// The longest datagram, in octets of payload.
const LONGEST: usize = 2048;

/// Sends datagrams.
pub(super) struct Sender {
    headers: Box<[[u8; HEADER]; BATCH]>,
    areas: Box<[[libc::iovec; 2]; BATCH]>,
    messages: Box<[libc::mmsghdr; BATCH]>,
    sizes: Sizes,
}

// SAFETY: the pointers inside are written before each system call and mean nothing after it.
unsafe impl Send for Sender {}

impl Sender {
    pub(super) fn new(sizes: Sizes) -> Self {
        // SAFETY: numbers and raw pointers only, for which zero octets are a value.
        let (areas, messages) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            headers: Box::new([[0; HEADER]; BATCH]),
            areas: Box::new(areas),
            messages: Box::new(messages),
            sizes,
        }
    }

    /// Sends up to `count` datagrams of `flow`, the first with `number`; returns how many went.
    pub(super) fn send(
        &mut self,
        socket: &UdpSocket,
        flow: u32,
        number: u64,
        count: usize,
    ) -> io::Result<usize> {
        let count = count.min(BATCH);
        let slots = self.headers.iter_mut().zip(self.areas.iter_mut());
        for (((header, areas), message), number) in slots
            .zip(self.messages.iter_mut())
            .zip(number..)
            .take(count)
        {
            header[..8].copy_from_slice(&number.to_le_bytes());
            header[8..].copy_from_slice(&flow.to_le_bytes());
            let rest = body(number, self.sizes);
            areas[0] = libc::iovec {
                iov_base: header.as_mut_ptr().cast(),
                iov_len: HEADER,
            };
            areas[1] = libc::iovec {
                // The kernel only reads it.
                iov_base: rest.as_ptr().cast_mut().cast(),
                iov_len: rest.len(),
            };
            message.msg_hdr.msg_iov = areas.as_mut_ptr();
            message.msg_hdr.msg_iovlen = 2;
        }
        let length = u32::try_from(count).unwrap_or(0);
        // SAFETY: the first `count` messages point to headers and areas of this value, which
        // outlive the call, and to the pattern, which is static and only read.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), self.messages.as_mut_ptr(), length, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// What follows the header of a datagram.
fn body(number: u64, sizes: Sizes) -> &'static [u8] {
    pattern::at(number, sizes.payload(number).saturating_sub(HEADER))
}

/// A datagram that arrived as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) flow: u32,
    pub(super) number: u64,
    /// Of its payload.
    pub(super) octets: usize,
}

/// Receives datagrams.
pub(super) struct Receiver {
    buffers: Box<[[u8; LONGEST]]>,
    areas: Box<[libc::iovec; BATCH]>,
    messages: Box<[libc::mmsghdr; BATCH]>,
    sizes: Sizes,
}

// SAFETY: the pointers inside are written before each system call and mean nothing after it.
unsafe impl Send for Receiver {}

impl Receiver {
    pub(super) fn new(sizes: Sizes) -> Self {
        // SAFETY: numbers and raw pointers only, for which zero octets are a value.
        let (areas, messages) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            buffers: vec![[0; LONGEST]; BATCH].into(),
            areas: Box::new(areas),
            messages: Box::new(messages),
            sizes,
        }
    }

    /// Waits for datagrams, as long as the socket's timeout, and hands each to `each`. The first
    /// that is not as it was sent is an error, and so is what `each` finds wrong.
    pub(super) fn receive(
        &mut self,
        socket: &UdpSocket,
        mut each: impl FnMut(Datagram) -> Result<(), String>,
    ) -> io::Result<Result<usize, String>> {
        let slots = self.buffers.iter_mut().zip(self.areas.iter_mut());
        for ((buffer, area), message) in slots.zip(self.messages.iter_mut()) {
            *area = libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: LONGEST,
            };
            message.msg_hdr.msg_iov = area;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: all messages point to areas and buffers of this value, which outlive the call.
        let came = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                MOST,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let came = usize::try_from(came).map_err(|_| io::Error::last_os_error())?;
        for (buffer, message) in self.buffers.iter().zip(self.messages.iter()).take(came) {
            let octets = buffer.get(..message.msg_len as usize).unwrap_or(buffer);
            let checked = check(octets, self.sizes).and_then(&mut each);
            if let Err(wrong) = checked {
                return Ok(Err(wrong));
            }
        }
        Ok(Ok(came))
    }
}

fn check(octets: &[u8], sizes: Sizes) -> Result<Datagram, String> {
    let header = octets.split_first_chunk::<8>().and_then(|(number, rest)| {
        let (flow, rest) = rest.split_first_chunk::<4>()?;
        Some((u64::from_le_bytes(*number), u32::from_le_bytes(*flow), rest))
    });
    let Some((number, flow, rest)) = header else {
        return Err(format!("a datagram of {} octets arrived", octets.len()));
    };
    if rest != body(number, sizes) {
        return Err(format!("datagram {number} of flow {flow} was changed"));
    }
    Ok(Datagram {
        flow,
        number,
        octets: octets.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: u64, flow: u32, sizes: Sizes) -> Vec<u8> {
        let mut octets = number.to_le_bytes().to_vec();
        octets.extend(flow.to_le_bytes());
        octets.extend(body(number, sizes));
        octets
    }

    #[test]
    fn datagrams_are_recognised_and_changes_are_found() {
        for sizes in [Sizes::Fixed(64), Sizes::Fixed(1400), Sizes::Imix] {
            for number in 0..50 {
                let mut octets = datagram(number, 7, sizes);
                assert_eq!(octets.len(), sizes.payload(number));
                let expected = Datagram {
                    flow: 7,
                    number,
                    octets: octets.len(),
                };
                assert_eq!(check(&octets, sizes), Ok(expected));
                *octets.last_mut().unwrap() ^= 0x80;
                assert!(check(&octets, sizes).is_err());
                octets.pop();
                assert!(check(&octets, sizes).is_err());
            }
        }
        assert!(check(&[0; 11], Sizes::Imix).is_err());
    }

    #[test]
    fn what_is_sent_is_received() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let sizes = Sizes::Imix;
        assert_eq!(Sender::new(sizes).send(&sender, 3, 100, 24).unwrap(), 24);
        let (mut numbers, mut messages) = (Vec::new(), Receiver::new(sizes));
        while numbers.len() < 24 {
            let each = |datagram: Datagram| {
                assert_eq!(datagram.flow, 3);
                numbers.push(datagram.number);
                Ok(())
            };
            messages.receive(&receiver, each).unwrap().unwrap();
        }
        assert_eq!(numbers, (100..124).collect::<Vec<_>>());
    }
}
