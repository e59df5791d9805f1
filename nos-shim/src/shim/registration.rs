//! What the relay asks of the NOS: who owns which addresses and ports.

use super::Shim;
use crate::channel::{Exchange, ToNos, ToRelay};
use crate::forward::Holder;
use crate::ident::{AttachmentId, VrfId};
use crate::ports::{
    ExchangeRefused, Owner, Registration, RegistrationRefused, ServiceRegistration,
};
use crate::services::ServiceConfig;

impl Shim {
    /// Carries out what the relay asks for. Returns whether there was anything.
    pub(crate) fn poll_control(&mut self) -> bool {
        let mut any = false;
        while let Some(ToNos::Exchange(request, exchange)) = self.channel.recv_control() {
            any = true;
            let answer = match self.exchange(exchange) {
                Ok(()) => ToRelay::Accepted(request),
                Err(refused) => ToRelay::Refused(request, refused),
            };
            // A relay that does not listen has gone, and its attachments with it.
            let _ = self.channel.send_control(answer);
        }
        any
    }

    /// Changes who owns which addresses and ports, all at once or not at all.
    ///
    /// # Errors
    ///
    /// [`ExchangeRefused`]; nothing has changed then.
    pub fn exchange(&mut self, exchange: Exchange) -> Result<(), ExchangeRefused> {
        let Exchange {
            withdraw,
            register,
            services,
        } = exchange;
        let service = services.as_ref().map(service_registration);
        self.ports
            .exchange(&withdraw, &register, service.as_ref())?;
        if let Some(services) = services {
            self.follow_services(&services);
        }
        for id in withdraw {
            self.attachments.remove(id);
            self.flush_flows(id);
        }
        for registration in register {
            self.follow_registration(registration);
        }
        Ok(())
    }

    /// Makes `config` all that the NOS itself offers, in the default VRF.
    ///
    /// # Errors
    ///
    /// [`RegistrationRefused`] when a container owns one of the ports; nothing has changed then.
    pub fn set_services(&mut self, config: &ServiceConfig) -> Result<(), RegistrationRefused> {
        self.ports.register_service(&service_registration(config))?;
        self.follow_services(config);
        Ok(())
    }

    fn follow_services(&mut self, config: &ServiceConfig) {
        #[cfg(feature = "stack")]
        self.local.set_services(&config.services);
        self.ping = config.ping;
    }

    fn follow_registration(&mut self, registration: Registration) {
        let id = registration.attachment;
        let place = |it: &Registration| (it.vrf, it.addresses.clone());
        let known = self.attachments.get(id);
        // What comes back on addresses that it has no more is another's.
        if known.is_some_and(|known| place(known) != place(&registration)) {
            self.flush_flows(id);
        }
        self.attachments.insert(id, registration);
    }

    fn flush_flows(&mut self, id: AttachmentId) {
        self.echo.flush(Owner::Attachment(id));
        self.fragments.flush(Holder::Attachment(id));
    }
}

fn service_registration(config: &ServiceConfig) -> ServiceRegistration {
    let claims = config.services.iter().flat_map(|service| service.claims());
    ServiceRegistration {
        name: "NOS".into(),
        vrf: VrfId::DEFAULT,
        claims: claims.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{RelayEnd, RequestId, pair};
    use crate::drop::DropReason;
    use crate::frame::FramePool;
    use crate::ident::{MacAddr, UplinkId, VrfId};
    use crate::ports::{Claim, ClaimKind, PortRange, Transport};
    use crate::shim::{LinkState, ShimConfig, UplinkConfig};
    use crate::test_packets::Draft;
    use crate::time::Instant;

    const A: AttachmentId = AttachmentId(0);
    const NOW: Instant = Instant::ZERO;
    const MORE: u16 = 0x2000;

    fn registration(draft: &Draft, port: u16) -> ToNos {
        let registration = Registration {
            attachment: A,
            name: "a".into(),
            vrf: VrfId::DEFAULT,
            addresses: vec![draft.destination],
            claims: vec![Claim {
                transport: Transport::Udp,
                range: PortRange::new(port, port).unwrap(),
                kind: ClaimKind::Listen,
            }],
            router: MacAddr([2; 6]).link_local(),
            mtu: 1500,
        };
        let exchange = Exchange {
            register: vec![registration],
            ..Exchange::default()
        };
        ToNos::Exchange(RequestId(1), exchange)
    }

    fn withdrawal() -> ToNos {
        let exchange = Exchange {
            withdraw: vec![A],
            ..Exchange::default()
        };
        ToNos::Exchange(RequestId(2), exchange)
    }

    fn handle(shim: &mut Shim, pool: &mut FramePool, draft: &Draft, udp: &[u8]) {
        let frame = pool.copy_from(&draft.frame(17, udp)).unwrap();
        shim.handle_burst(UplinkId(0), &mut [frame].into_iter().collect(), NOW);
    }

    fn received(relay: &mut RelayEnd) -> usize {
        std::iter::from_fn(|| relay.recv_burst()).flatten().count()
    }

    #[test]
    fn a_withdrawn_attachment_leaves_no_fragments_to_its_successor() {
        let (mut relay, nos) = pair(8);
        let mut pool = FramePool::new(16, 2000);
        let mut shim = Shim::new(nos, pool.clone(), ShimConfig::default());
        let mut draft = Draft::v4();
        let uplink = UplinkConfig {
            id: UplinkId(0),
            name: "up0".into(),
            vrf: VrfId::DEFAULT,
            mac: MacAddr(draft.mac),
            addresses: vec![format!("{}/24", draft.destination).parse().unwrap()],
            mtu: 1500,
        };
        shim.set_uplink(uplink, NOW).unwrap();
        shim.set_link(UplinkId(0), LinkState::Up, NOW).unwrap();
        // The announcements.
        while let Some((_, burst)) = shim.poll_transmit() {
            burst.clear();
        }
        relay.send_control(registration(&draft, 5000)).unwrap();
        shim.poll_channel(NOW, 1);
        let udp = draft.udp((9, 5000), &[7; 24]);
        draft.fragment = MORE;
        handle(&mut shim, &mut pool, &draft, &udp[..16]);
        assert_eq!(received(&mut relay), 1);
        // Another container gets the number, and has another port.
        relay.send_control(withdrawal()).unwrap();
        relay.send_control(registration(&draft, 6000)).unwrap();
        shim.poll_channel(NOW, 1);
        draft.fragment = 2;
        handle(&mut shim, &mut pool, &draft, &udp[16..]);
        assert_eq!(received(&mut relay), 0);
        assert_eq!(shim.held(), 1);
        shim.handle_timeout(Instant::from_millis(60_000));
        assert_eq!(shim.ledger().drops.of(DropReason::FragmentTimeout), 1);
        assert_eq!(shim.ledger().unaccounted(), shim.held() as i128);
    }
}
