//! What the services do with their connections.

use smoltcp::socket::tcp::{Socket, State};

use super::Service;
use super::http::{Exchange, Progress, Status};

/// Octets that are moved at once.
const CHUNK: usize = 4096;

/// The server's end of one connection.
pub(super) enum Application {
    Echo,
    Discard,
    Http(Box<Exchange>),
}

impl Application {
    pub(super) fn new(service: Service) -> Self {
        match service {
            Service::Echo => Self::Echo,
            Service::Discard => Self::Discard,
            Service::Http(_) => Self::Http(Box::default()),
        }
    }

    /// Does everything that can be done now. Returns whether an octet moved.
    pub(super) fn work(&mut self, socket: &mut Socket<'_>, status: &Status) -> bool {
        let moved = match self {
            Self::Echo => echo(socket),
            Self::Discard => discard(socket),
            Self::Http(exchange) => http(exchange, socket, status),
        };
        // Everything that the peer sent before its FIN has been taken care of.
        let ended = socket.state() == State::CloseWait && socket.recv_queue() == 0;
        if ended && self.is_done() {
            socket.close();
        }
        moved
    }

    /// Whether its client has not yet said what it wants.
    pub(super) fn waits_for_request(&self) -> bool {
        match self {
            Self::Echo | Self::Discard => false,
            Self::Http(exchange) => exchange.progress() == Progress::Receiving,
        }
    }

    /// Whether there is nothing left to be said.
    fn is_done(&self) -> bool {
        match self {
            Self::Echo | Self::Discard => true,
            Self::Http(exchange) => exchange.is_done(),
        }
    }
}

fn echo(socket: &mut Socket<'_>) -> bool {
    let mut chunk = [0; CHUNK];
    let mut moved = false;
    loop {
        let room = (socket.send_capacity() - socket.send_queue()).min(CHUNK);
        if room == 0 || !socket.can_recv() || !socket.may_send() {
            return moved;
        }
        let Ok(len) = socket.recv_slice(&mut chunk[..room]) else {
            return moved;
        };
        if socket.send_slice(&chunk[..len]).is_err() {
            return moved;
        }
        moved = true;
    }
}

fn discard(socket: &mut Socket<'_>) -> bool {
    let mut moved = false;
    while socket.can_recv() {
        moved |= matches!(socket.recv(|octets| (octets.len(), octets.len())), Ok(1..));
    }
    moved
}

fn http(exchange: &mut Exchange, socket: &mut Socket<'_>, status: &Status) -> bool {
    let mut moved = false;
    while socket.can_recv() {
        let taken = socket.recv(|octets| {
            exchange.receive(octets, status);
            (octets.len(), octets.len())
        });
        moved |= matches!(taken, Ok(1..));
    }
    if socket.state() == State::CloseWait {
        exchange.end_of_input();
    }
    while socket.can_send()
        && let Progress::Sending(rest) = exchange.progress()
    {
        let Ok(sent) = socket.send_slice(rest) else {
            return moved;
        };
        exchange.sent(sent);
        moved = true;
    }
    if exchange.is_done() {
        socket.close();
    }
    moved
}
