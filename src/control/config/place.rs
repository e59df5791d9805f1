//! Where things stand in the text of a configuration.

/// Where something stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Octets from the start of the text.
    pub(super) offset: usize,
    section: &'static str,
    key: &'static str,
}

impl Place {
    /// The top of the text, for what the whole of it lacks.
    pub(super) const fn top(key: &'static str) -> Self {
        Self::new(0, "", key)
    }

    pub(super) const fn new(offset: usize, section: &'static str, key: &'static str) -> Self {
        Self {
            offset,
            section,
            key,
        }
    }

    /// The key as documented: `uplink.mtu`.
    pub(super) fn key(self) -> String {
        match (self.section, self.key) {
            ("", name) | (name, "") => name.to_owned(),
            (section, key) => format!("{section}.{key}"),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<T> At<T> {
    pub(super) fn as_ref(&self) -> At<&T> {
        At {
            value: &self.value,
            place: self.place,
        }
    }

    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> At<U> {
        At {
            value: change(self.value),
            place: self.place,
        }
    }
}
