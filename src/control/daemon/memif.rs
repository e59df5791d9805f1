//! Uplinks on shared memory: the sockets, and what is told of their peers.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::Waker;
use nos_shim::ident::{Interface, UplinkId};
use tracing::{info, warn};

use crate::control::api::{Carrier as WatchCarrier, Event as WatchEvent};
use crate::control::memif::{Carrier, News, Options, Sockets, TAKES_NOTHING};
use crate::control::plan::Entity;
use crate::data::device::memif::Memif;

use super::Daemon;
use super::live::StepError;
use super::watching::subject;

/// The sockets, once there is one; and what is told of their peers.
#[derive(Debug)]
pub(super) struct Memifs {
    sockets: Option<Sockets>,
    news: Receiver<News>,
    telling: Sender<News>,
    waker: Arc<Waker>,
}

impl Memifs {
    /// None. `waker` is called when there is news.
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        let (telling, news) = unbounded();
        Self {
            sockets: None,
            news,
            telling,
            waker,
        }
    }

    /// Opens the interface of an uplink.
    pub(super) fn open(
        &mut self,
        id: UplinkId,
        name: &str,
        options: Options,
    ) -> Result<Memif, StepError> {
        let sockets = match self.sockets.take() {
            Some(sockets) => sockets,
            None => self.start()?,
        };
        let opened = sockets.open(Interface::Uplink(id), name, options);
        self.sockets = Some(sockets);
        opened.map_err(StepError::new)
    }

    fn start(&self) -> Result<Sockets, StepError> {
        let (telling, waker) = (self.telling.clone(), Arc::clone(&self.waker));
        let tell = move |news| {
            // Without a control thread nobody is left to tell.
            if telling.send(news).is_ok() {
                let _ = waker.wake();
            }
        };
        Sockets::start(tell).map_err(StepError::new)
    }

    pub(super) fn next_news(&self) -> Option<News> {
        self.news.try_recv().ok()
    }
}

impl Daemon {
    /// The peer of an uplink came, went, or takes nothing.
    pub(super) fn carrier_changed(&mut self, News { interface, carrier }: News) {
        let mut uplinks = self.live.uplinks.iter_mut();
        let found = uplinks.find(|(_, uplink)| Interface::Uplink(uplink.id) == interface);
        let found = found.and_then(|(name, uplink)| Some((name, uplink.device.as_mut()?)));
        // It may have been closed meanwhile.
        let Some((name, device)) = found else { return };
        let name = name.clone();
        let (state, peer, reason) = match carrier {
            Carrier::Up(peer) => {
                info!(uplink = %name, peer, "a memif peer takes frames");
                (WatchCarrier::Up, Some(peer), None)
            }
            Carrier::Stalled => {
                warn!(uplink = %name, "the memif peer takes nothing");
                (WatchCarrier::Stalled, None, Some(TAKES_NOTHING.to_owned()))
            }
            Carrier::Down(why) => {
                warn!(uplink = %name, why, "no memif peer takes frames");
                (WatchCarrier::Down, None, Some(why))
            }
        };
        device.down.clone_from(&reason);
        let mut facts = device.facts.clone();
        facts.operational = state != WatchCarrier::Down;
        self.live.follow_link(&name, facts);
        self.reconciler.tell(WatchEvent::Carrier {
            subject: subject(&Entity::Uplink(name)),
            state,
            peer,
            reason,
        });
    }
}
