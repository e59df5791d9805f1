//! Packet sockets: any Ethernet interface of the kernel as a device.
//!
//! # Theory of operation
//!
//! The socket hears every frame that comes in on one interface, and nothing else: it is made deaf
//! (protocol 0), set up, and then bound to the interface and to all protocols at once, so no frame
//! of another interface slips in between. What the kernel itself sends there is left out.
//!
//! Frames come and go with a virtio-net header. On veth that is not a matter of speed: frames from
//! the other end have partial checksums and are up to 64 KiB long, and only the header says so.
//!
//! A tunnel's super-frame comes with the offload of the packet inside, as if there were no tunnel. It
//! cannot be sent so: the kernel would look for a TCP header where the tunnel's is, and drop it with
//! `ENOMEM`. So those of UDP tunnels leave by a TAP beside the socket ([`super::injection`]). Where that
//! cannot be, and until it is, they are cut before, as all others are, and the segments leave as runs of
//! datagrams.
//!
//! The kernel takes a VLAN tag out of the frame before we get it and mentions it in auxiliary data.
//! Traffic of a VLAN belongs to another network, so such frames are dropped ([`DropReason::Vlan`]), not
//! taken for untagged ones. Frames with a priority tag are untagged ones ([`nos_shim::vlan`]).
//! With a [VLAN](PacketOptions::vlan) it is the frames of that alone which are used.
//!
//! Frames are received and sent by `recvmmsg` and `sendmmsg`, header and frame as one piece; runs of
//! datagrams are sent as one message ([`super::coalesce`]). A
//! `recvmmsg` that yields fewer messages than asked for has met an empty queue: a frame that comes
//! later raises a new edge, so there is no need to ask once more. An error that ended it instead
//! was stored in the socket by the kernel, which polls as an error.
//!
//! Linux passes super-frames between interfaces that are longer than a buffer (BIG TCP). They are cut into
//! ordinary ones ([`overflow`], [`nos_shim::offload::cut_long`]); one that comes after a long time without
//! such is lost.
//!
//! When the interface goes down, the kernel stores `ENETDOWN` in the socket, once, and takes up
//! delivery by itself when it comes up. When the interface is deleted, that is the same event
//! followed by a silent change of the bound index to -1: [`link`] looks at it for the control side,
//! and the next frame that is sent is refused with `ENXIO`.

mod messages;
mod overflow;
mod reception;
mod socket;
mod vlans;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nos_shim::drop::DropReason;
use nos_shim::frame::{Burst, Frame, FramePool, MAX_FRAME, Offload, VNET_HEADER};
use nos_shim::ident::MacAddr;
use nos_shim::offload::{Capabilities, Dropped};
use nos_shim::vlan::{TAG, VlanId};

use super::character;
use super::injection::{Injected, Injection, Tunnels, is_of_tunnel};
use super::tagged::{self, NOT_TAGGED};
use super::uring::{Batch, How};
use super::vnet::{self, Offloads};
use super::{
    DeviceCounters, DeviceKind, Egress, FrameDevice, Inspector, OpenError, Received, Sending, Sent,
    valid_name,
};
use messages::{Messages, Refused, Sendmmsg};
use reception::Reception;

pub(super) use socket::{index, link, take_drops};
pub use vlans::Shown;
pub(super) use vlans::show;

/// Its virtio-net header has no words for tunnels, with a tag or without.
const TUNNELS: Capabilities = NOT_TAGGED;

/// How a packet socket is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketOptions {
    /// Offloads to use on egress. What comes in has partial checksums and super-frames in any
    /// case, if the interface's other end makes such.
    pub offload: Capabilities,
    /// Octets of kernel memory for frames not yet received, and as much for those being sent. A
    /// process without rights in the initial user namespace gets at most `net.core.rmem_max` and
    /// `wmem_max`.
    pub buffer: usize,
    /// Receive frames for other stations as well: needed where ours is not the interface's own MAC
    /// address. Multicast frames are received in any case.
    pub promiscuous: bool,
    /// Receive only what is for this MAC address, and ARP and ICMPv6 to groups: for an interface that is a port of a
    /// bridge, whose other frames are none of ours.
    pub station: Option<MacAddr>,
    /// Somebody is there to open an [`Injection`] when a tunnel's super-frame comes:
    /// [`FrameDevice::asks_for_injection`]. With a VLAN there is none.
    pub injection: bool,
    /// Use the frames of this VLAN, and have its tag on all that is sent; the others are dropped. Without
    /// one, use the frames without a tag.
    pub vlan: Option<VlanId>,
}

impl Default for PacketOptions {
    fn default() -> Self {
        Self {
            offload: Capabilities::all(),
            buffer: 16 << 20,
            promiscuous: false,
            station: None,
            injection: false,
            vlan: None,
        }
    }
}

/// A packet socket bound to one interface.
#[derive(Debug)]
pub struct PacketSocket {
    fd: Arc<OwnedFd>,
    name: String,
    vlan: Option<VlanId>,
    offloads: Offloads,
    tunnels: Tunnels,
    /// Super-frames of tunnels that were called invalid.
    invalid_tunnels: u64,
    messages: Box<Messages>,
    reception: Reception,
    counters: DeviceCounters,
}

impl PacketSocket {
    /// Opens a socket on interface `name` of the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// There is no such interface, it carries no Ethernet frames, or the kernel refuses the socket
    /// (`CAP_NET_RAW`) or one of the options (virtio-net headers: Linux 2.6.27).
    pub fn open(name: &str, options: PacketOptions) -> Result<Self, OpenError> {
        Self::open_showing(name, options, &Shown::AllBut(Vec::new()))
    }

    /// The same where the kernel shows the socket some frames only, as others are for other sockets.
    ///
    /// # Errors
    ///
    /// As for [`Self::open`].
    pub fn open_showing(
        name: &str,
        options: PacketOptions,
        shown: &Shown,
    ) -> Result<Self, OpenError> {
        let name = valid_name(name)?;
        let fd = socket::open(name, options, shown)?;
        let vlan = options.vlan;
        let mut messages = Messages::new(vlan);
        messages.expect_long();
        let injection = options.injection && vlan.is_none();
        Ok(Self {
            fd: Arc::new(fd),
            name: name.to_owned(),
            vlan,
            offloads: Offloads::new(options.offload - TUNNELS),
            tunnels: if injection && options.offload.contains(Capabilities::TUNNEL) {
                Tunnels::Unmet
            } else {
                Tunnels::Cut
            },
            invalid_tunnels: 0,
            messages,
            reception: Reception::new(),
            counters: DeviceCounters::default(),
        })
    }

    /// Goes on with a socket that another process has opened on interface `name`, and may still use.
    pub(super) fn received(
        fd: OwnedFd,
        name: String,
        vlan: Option<VlanId>,
        capabilities: Capabilities,
        long_frames: bool,
    ) -> Self {
        let mut messages = Messages::new(vlan);
        if long_frames {
            messages.expect_long();
        }
        Self {
            fd: Arc::new(fd),
            name,
            vlan,
            offloads: Offloads::new(capabilities - TUNNELS),
            // What the other had for them is not handed over: the first that comes asks anew.
            tunnels: match capabilities.contains(Capabilities::CHECKSUM) && vlan.is_none() {
                true => Tunnels::Unmet,
                false => Tunnels::Cut,
            },
            invalid_tunnels: 0,
            messages,
            reception: Reception::new(),
            counters: DeviceCounters::default(),
        }
    }

    /// See [`FrameDevice::send`]; with the tags that they have.
    #[inline]
    fn send_as_they_are(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        mut batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        let mut sending = Sending::new(burst, pool, &mut self.counters.sent);
        if let Some(errno) = self.reception.gone() {
            sending.lost(Egress::Gone(errno));
            return sending.finish();
        }
        let mut sender = Sender {
            socket: &*self.fd,
            name: &self.name,
            messages: &mut self.messages,
            reception: &mut self.reception,
        };
        let offloads = &mut self.offloads;
        let whole = !self.tunnels.are_taken()
            || send_past_tunnels(
                &mut sending,
                &mut self.tunnels,
                &mut self.invalid_tunnels,
                |sending| sender.send(sending, offloads, batch.as_deref_mut()),
            );
        if whole {
            sender.send(&mut sending, offloads, batch);
        }
        let sent = sending.finish();
        self.counters.refused = self.offloads.refusals();
        self.counters.refused.tunnel += self.invalid_tunnels;
        match sent.egress {
            Egress::Gone(errno) => self.reception.link_has_gone(errno),
            Egress::Down => self.reception.link_is_down(),
            Egress::Ready | Egress::Adapt => {}
        }
        sent
    }
}

impl FrameDevice for PacketSocket {
    fn recv_burst(&mut self, pool: &mut FramePool, burst: &mut Burst, limit: usize) -> Received {
        let mut socket = Kernel {
            fd: &self.fd,
            name: &self.name,
            messages: &mut self.messages,
        };
        let traffic = &mut self.counters.received;
        let received = self
            .reception
            .recv_burst(&mut socket, pool, burst, limit, traffic);
        self.counters.long = self.reception.cut();
        received
    }

    fn send(
        &mut self,
        burst: &mut Burst,
        pool: &mut FramePool,
        batch: Option<&mut Batch<'_>>,
    ) -> Sent {
        let Some(vlan) = self.vlan else {
            return self.send_as_they_are(burst, pool, batch);
        };
        let without = tagged::put_in(vlan, burst, pool, &mut self.counters.sent.drops);
        let mut sent = self.send_as_they_are(burst, pool, batch);
        tagged::take_back(vlan, burst);
        let tags = sent.frames * TAG;
        self.counters.sent.octets -= tags as u64;
        sent.octets -= tags;
        sent.dropped += without;
        sent
    }

    fn capabilities(&self) -> Capabilities {
        let own = self.offloads.capabilities();
        match own.contains(Capabilities::CHECKSUM) && self.tunnels.are_taken() {
            true => own | Capabilities::TUNNEL,
            false => own,
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn inspector(&self) -> Inspector {
        Inspector::of_packet(&self.fd)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Packet
    }

    fn counters(&self) -> &DeviceCounters {
        &self.counters
    }

    fn set_coalescing(&mut self, on: bool) {
        self.offloads.set_coalescing(on);
    }

    fn asks_for_injection(&mut self) -> bool {
        self.tunnels.ask()
    }

    fn inject(&mut self, injection: Injection) -> Result<(), Injection> {
        self.tunnels.inject(injection)
    }
}

/// Sends all frames as far as the last of a tunnel's super-frames, those by their own way and what is
/// before them by `send`, in their order. Returns whether what is left can be sent as it is.
fn send_past_tunnels(
    sending: &mut Sending<'_>,
    tunnels: &mut Tunnels,
    invalid: &mut u64,
    mut send: impl FnMut(&mut Sending<'_>),
) -> bool {
    while let Some(before) = sending.waiting().iter().position(is_of_tunnel) {
        if before > 0 {
            sending.limit(before);
            send(sending);
            sending.unlimit();
            if sending.sent.egress != Egress::Ready {
                return false;
            }
        }
        match tunnels.send(sending) {
            Injected::Done => continue,
            Injected::Cut => {}
            Injected::Invalid => *invalid += 1,
        }
        sending.adapt();
        return false;
    }
    true
}

/// A packet socket on its sending side.
struct Sender<'a, S> {
    socket: &'a S,
    name: &'a str,
    messages: &'a mut Messages,
    reception: &'a mut Reception,
}

impl<S: Sendmmsg> Sender<'_, S> {
    /// Sends what waits, by a batch where one can be made of it.
    #[inline]
    fn send(
        &mut self,
        sending: &mut Sending<'_>,
        offloads: &mut Offloads,
        mut batch: Option<&mut Batch<'_>>,
    ) {
        let mut down_before = false;
        while sending.front().is_some() {
            // After an outage the first frame learns of it, and is sent again: not in a batch.
            if let Some(batch) = &mut batch
                && self.reception.is_up()
                && batch.send(How::Send, vnet::area(VNET_HEADER), offloads, sending) > 0
            {
                continue;
            }
            let coalesce = offloads.coalesces();
            let result = self.messages.send(self.socket, sending.waiting(), coalesce);
            match result {
                Ok(taken) => {
                    for _ in 0..taken {
                        if let Some(frame) = sending.front() {
                            offloads.taken(frame.offload());
                        }
                        sending.taken();
                    }
                    self.reception.link_is_up();
                }
                // May be the trace of an outage that has ended: asking clears it.
                Err(Refused {
                    errno: Errno::ENETDOWN,
                    ..
                }) if !down_before => down_before = true,
                Err(refused) => {
                    if self.refused(refused, sending, offloads) {
                        break;
                    }
                }
            }
        }
    }

    /// Draws the consequences of the kernel's refusal of what is in front. Returns whether that, and
    /// what is behind it, is to be adapted.
    ///
    /// `ENOMEM` is the answer to a super-frame that the kernel cannot cut, and also what it says for
    /// want of memory. Of a kind that it has taken before, it means the latter.
    #[cold]
    fn refused(
        &self,
        Refused { errno, run }: Refused,
        sending: &mut Sending<'_>,
        offloads: &mut Offloads,
    ) -> bool {
        let invalid = matches!(errno, Errno::EINVAL | Errno::EMSGSIZE);
        let uncut = errno == Errno::ENOMEM;
        if run && (invalid || uncut && !self.messages.has_sent_run()) {
            offloads.refused_run(DeviceKind::Packet, self.name);
            return false;
        }
        let offload = sending.front().map(|frame| frame.offload());
        let first_of_its_kind = |offload: &Offload| {
            offload.segmentation.is_some() && !offloads.may_be_batched(*offload)
        };
        let blamed = offload.filter(|offload| invalid || uncut && first_of_its_kind(offload));
        if let Some(kind) = blamed.and_then(|offload| offloads.refused(offload)) {
            vnet::log_fallback(DeviceKind::Packet, self.name, kind);
            sending.adapt();
            return true;
        }
        character::handle_refusal(sending, errno);
        false
    }
}

/// The socket that frames are received from.
struct Kernel<'a> {
    fd: &'a OwnedFd,
    name: &'a str,
    messages: &'a mut Messages,
}

impl reception::Socket for Kernel<'_> {
    fn receive(&mut self, frames: &mut Burst) -> Result<usize, Errno> {
        self.messages.receive(self.fd, frames)
    }

    fn at_once(&self) -> usize {
        self.messages.at_once()
    }

    fn accept(&self, n: usize, frame: &mut Frame) -> Result<(), DropReason> {
        self.messages.accept(n, frame)
    }

    fn cut(
        &mut self,
        n: usize,
        frame: Frame,
        pool: &mut FramePool,
        out: &mut VecDeque<Frame>,
    ) -> Result<Option<Dropped>, DropReason> {
        if self.messages.is_first_long(n) {
            tracing::warn!(
                "{} {}: frames of more than {MAX_FRAME} octets come in, which are cut: gso_max_size \
                 or gso_ipv4_max_size of the sender's interface, or gro_max_size or \
                 gro_ipv4_max_size of this one, is above 65536",
                DeviceKind::Packet,
                self.name
            );
        }
        self.messages.cut(n, frame, pool, out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::refusing::{self, Answers};
    use super::*;

    impl Sendmmsg for Answers {
        unsafe fn send_messages(&self, headers: &mut [libc::mmsghdr]) -> libc::c_int {
            let mut sent = 0;
            for message in headers {
                let libc::msghdr {
                    msg_iov,
                    msg_iovlen,
                    ..
                } = message.msg_hdr;
                // SAFETY: by the caller's word.
                let areas = unsafe { core::slice::from_raw_parts(msg_iov, msg_iovlen) };
                let octets = |area: &libc::iovec| {
                    // SAFETY: likewise.
                    unsafe { core::slice::from_raw_parts(area.iov_base.cast::<u8>(), area.iov_len) }
                };
                let pieces: Vec<&[u8]> = areas.iter().map(octets).collect();
                match self.answer(&pieces) {
                    Ok(_) => sent += 1,
                    Err(errno) if sent == 0 => {
                        errno.set();
                        return -1;
                    }
                    Err(_) => break,
                }
            }
            sent
        }
    }

    #[test]
    fn what_the_kernel_refuses_of_one_kind_arrives_otherwise_and_other_kinds_as_they_are() {
        let errors = [Errno::EINVAL, Errno::EMSGSIZE, Errno::ENOMEM];
        let make = || {
            let (mut messages, mut reception) = (Messages::new(None), Reception::new());
            move |answers: &Answers, offloads: &mut Offloads, sending: &mut Sending<'_>| {
                let mut sender = Sender {
                    socket: answers,
                    name: "p0",
                    messages: &mut messages,
                    reception: &mut reception,
                };
                sender.send(sending, offloads, None);
            }
        };
        let capabilities = Capabilities::all() - TUNNELS;
        refusing::each_kind(capabilities, VNET_HEADER, &errors, make);
    }
}
