//! A NOS that ends, and another that takes its place.

use super::*;
use nos_shim::channel::{Configuration, Query};
use nos_shim::ident::UplinkId;

impl Setup {
    /// Another NOS takes the place of the one that is there, which has `ended`, or not yet. If it has,
    /// the relay may have `noticed`.
    pub(super) fn restart(&mut self, ended: bool, noticed: bool) {
        let (end, nos) = pair(2);
        let before = core::mem::replace(&mut self.nos, nos);
        if ended {
            drop(before);
            if noticed {
                self.relay.poll_channel(NOW, 0);
            }
            self.relay.rejoin(end);
        } else {
            self.relay.rejoin(end);
            drop(before);
        }
    }

    fn events(&mut self) -> Vec<RelayEvent> {
        std::iter::from_fn(|| self.relay.poll_event()).collect()
    }
}

#[test]
fn packets_that_a_nos_has_not_taken_are_counted_when_it_ends() {
    let mut setup = Setup::new(2, &[A]);
    let frames = [(); 3].map(|()| datagram(40000, b"abc"));
    setup.handle(A, &frames);
    assert_eq!(setup.nos.recv_burst().map(|burst| burst.len()), Some(3));
    setup.handle(A, &frames[..2]);
    let mut late: PacketBurst = [setup.packet(A, &inbound(b"late"))].into_iter().collect();
    assert!(setup.nos.send_burst(&mut late));
    let (_, nos) = pair(1);
    drop(core::mem::replace(&mut setup.nos, nos));
    assert!(!setup.relay.try_sleep(), "there is news");
    setup.relay.poll_channel(NOW, 1);
    assert_eq!(setup.events(), [RelayEvent::NosGone]);
    assert_eq!(setup.written().len(), 1, "what it sent before is delivered");
    assert_eq!(setup.drops(), [(DropReason::NosGone, 2)]);
    setup.handle(A, &frames[..1]);
    assert_eq!(setup.drops(), [(DropReason::NosGone, 3)]);
    let ledger = setup.relay.ledger();
    assert_eq!((ledger.received, ledger.sent), (7, 4));
    setup.assert_balanced();
    setup.relay.poll_channel(NOW, 1);
    assert_eq!(setup.events(), [], "it is told once");
    assert!(setup.relay.try_sleep());
}

#[test]
fn what_was_asked_of_a_nos_that_ends_is_unanswered() {
    let mut setup = Setup::new(2, &[A]);
    let relay = &mut setup.relay;
    let asked = [
        relay.update(config(A)).unwrap(),
        relay.attach(config(B)).unwrap(),
        relay.query(Query::Counters).unwrap(),
        relay
            .configure(Configuration::LeaveLink(UplinkId(0)))
            .unwrap(),
    ];
    setup.answer(ToRelay::Accepted(asked[0]));
    setup.restart(true, true);
    let unanswered = asked[1..].iter().copied().map(RelayEvent::Unanswered);
    let mut expected = vec![RelayEvent::Accepted(asked[0])];
    expected.extend(unanswered);
    expected.push(RelayEvent::NosGone);
    assert_eq!(setup.events(), expected);
    let (_, told) = setup.asked().unwrap();
    let ids: Vec<_> = told.register.iter().map(|of| of.attachment).collect();
    assert_eq!(ids, [A], "B was never accepted");
}

#[test]
fn a_nos_that_is_new_is_told_what_the_one_before_had_accepted() {
    for (ended, noticed) in [(true, true), (true, false), (false, false)] {
        let mut setup = Setup::new(2, &[A, B]);
        let changed = AttachmentConfig {
            claims: vec![claim(50000, 50999)],
            ..config(B)
        };
        let request = setup.relay.update(changed.clone()).unwrap();
        setup.accept(request);
        let mut stale: PacketBurst = [setup.packet(A, &inbound(b"stale"))].into_iter().collect();
        assert!(setup.nos.send_burst(&mut stale));
        setup.restart(ended, noticed);
        let gone = if ended {
            vec![RelayEvent::NosGone]
        } else {
            vec![]
        };
        assert_eq!(setup.events(), gone);
        let (request, told) = setup.asked().unwrap();
        assert!(setup.asked().is_none());
        assert_eq!((told.withdraw, told.services), (vec![], None));
        let claims: Vec<_> = told
            .register
            .into_iter()
            .map(|of| (of.attachment, of.claims))
            .collect();
        assert_eq!(claims, [(A, config(A).claims), (B, changed.claims)]);
        // Until it accepts, nothing passes.
        setup.handle(A, &[datagram(40000, b"early")]);
        setup.deliver(A, &[inbound(b"early")]);
        assert!(setup.received().is_empty() && setup.written().is_empty());
        let expected = [(DropReason::UnknownAttachment, 2), (DropReason::NosGone, 1)];
        assert_eq!(setup.drops(), expected);
        setup.answer(ToRelay::Accepted(request));
        assert_eq!(setup.events(), [RelayEvent::Rejoined]);
        setup.handle(B, &[datagram(50000, b"abc")]);
        assert_eq!(setup.received().len(), 1);
        setup.deliver(A, &[inbound(b"abc")]);
        assert_eq!(setup.written().len(), 1);
        setup.assert_balanced();
    }
}

#[test]
fn one_that_is_refused_does_not_keep_the_others_out() {
    let mut setup = Setup::new(2, &[A, B]);
    setup.restart(true, false);
    let (request, _) = setup.asked().unwrap();
    let (answer, RelayEvent::Refused(_, why)) = refused(request) else {
        panic!("it is refused");
    };
    setup.answer(answer);
    let events = [RelayEvent::NosGone, RelayEvent::NotRejoined(A, why.clone())];
    assert_eq!(setup.events(), events);
    let (request, told) = setup.asked().unwrap();
    assert_eq!(told.register.len(), 1);
    setup.answer(ToRelay::Accepted(request));
    assert_eq!(setup.events(), [RelayEvent::Rejoined]);
    assert!(!setup.status(A).active && setup.status(B).active);
    // It is as one that is new: the next NOS is not told of it, and it may be asked for.
    setup.restart(true, false);
    let (request, told) = setup.asked().unwrap();
    assert_eq!(told.register.len(), 1);
    setup.answer(ToRelay::Accepted(request));
    let request = setup.relay.update(config(A)).unwrap();
    setup.answer(ToRelay::Accepted(request));
    assert!(setup.status(A).active);
}

#[test]
fn a_refusal_that_names_nobody_refuses_all() {
    let mut setup = Setup::new(2, &[A, B]);
    setup.restart(true, true);
    let (request, _) = setup.asked().unwrap();
    let refused = ExchangeRefused {
        owner: Owner::Nos,
        reason: RegistrationRefused::Twice(A),
    };
    setup.answer(ToRelay::Refused(request, refused.clone()));
    let not = |id| RelayEvent::NotRejoined(id, refused.clone());
    let events = [RelayEvent::NosGone, not(A), not(B), RelayEvent::Rejoined];
    assert_eq!(setup.events(), events);
    assert!(setup.asked().is_none());
}

#[test]
fn one_that_is_detached_meanwhile_does_not_come_back() {
    let mut setup = Setup::new(2, &[A, B]);
    setup.restart(false, false);
    let (request, _) = setup.asked().unwrap();
    setup.relay.detach(A).unwrap();
    setup.answer(ToRelay::Accepted(request));
    assert_eq!(setup.events(), [RelayEvent::Rejoined]);
    assert_eq!(setup.relay.attachments(None).rows.len(), 1);
    assert!(setup.status(B).active);
}

#[test]
fn one_nos_after_another_ends_before_it_answers() {
    let mut setup = Setup::new(2, &[A]);
    for _ in 0..3 {
        setup.restart(true, true);
    }
    let (request, told) = setup.asked().unwrap();
    assert_eq!(told.register.len(), 1);
    setup.answer(ToRelay::Accepted(request));
    assert!(setup.status(A).active);
}

/// A waker that is set once rings for every NOS.
#[test]
fn every_nos_wakes_the_relay() {
    struct Bell(std::sync::mpsc::Sender<()>);
    impl Wake for Bell {
        fn wake(&self) {
            let _ = self.0.send(());
        }
    }
    let mut setup = Setup::new(2, &[A]);
    let (bell, rung) = std::sync::mpsc::channel();
    setup.relay.set_waker(Box::new(Bell(bell)));
    for _ in 0..2 {
        let (request, _) = match setup.relay.update(config(A)) {
            Ok(request) => (request, setup.asked()),
            Err(error) => panic!("{error}"),
        };
        assert!(setup.relay.try_sleep());
        setup.nos.send_control(ToRelay::Accepted(request)).unwrap();
        assert!(rung.try_recv().is_ok());
        setup.relay.awake();
        setup.relay.poll_channel(NOW, 0);
        setup.events();
        setup.restart(false, false);
        let (request, _) = setup.asked().unwrap();
        setup.answer(ToRelay::Accepted(request));
        setup.events();
    }
}
