//! What the relay asks of the NOS.

use super::Shim;
use crate::channel::{Registration, ToNos, ToRelay};
use crate::ident::AttachmentId;
use crate::ports::Owner;

impl Shim {
    /// What the relay has to say. Returns whether there was anything.
    pub(crate) fn poll_control(&mut self) -> bool {
        let mut any = false;
        while let Some(message) = self.channel.recv_control() {
            any = true;
            let answer = match message {
                ToNos::Register(registration) => self.register(registration),
                ToNos::Withdraw(id) => {
                    self.withdraw(id);
                    continue;
                }
            };
            // A relay that does not listen has gone, and its attachments with it.
            let _ = self.channel.send_control(answer);
        }
        any
    }

    fn register(&mut self, registration: Registration) -> ToRelay {
        let id = registration.attachment;
        if let Err(refused) = self.ports.register(&registration) {
            return ToRelay::Refused(id, refused);
        }
        let index = id.0 as usize;
        if self.attachments.len() <= index {
            self.attachments.resize_with(index + 1, || None);
        }
        self.attachments[index] = Some(registration);
        ToRelay::Accepted(id)
    }

    fn withdraw(&mut self, id: AttachmentId) {
        self.ports.withdraw(id);
        self.echo.flush(Owner::Attachment(id));
        if let Some(slot) = self.attachments.get_mut(id.0 as usize) {
            *slot = None;
        }
    }
}
