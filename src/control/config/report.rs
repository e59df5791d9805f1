//! What is wrong with a configuration, and where.

use core::cell::{Cell, RefCell};
use core::fmt;
use core::hash::Hash;
use core::str::Utf8Error;
use std::collections::HashMap;
use std::io;

use nos_shim::ports::PortRange;

use super::place::{At, Place};

/// Errors that are kept; of a file with more, only the number of the others is told.
const MAX_ERRORS: usize = 100;

/// One thing that is wrong. Displays as `FILE:LINE: KEY: reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as the caller named it.
    pub file: String,
    /// The line, from 1; none when the file could not be read at all, and for what was added at
    /// run time.
    pub line: Option<usize>,
    /// The key as in `uplink.mtu`, or `syntax`; none when the file could not be read at all.
    pub key: Option<String>,
    /// What is wrong, with the offending value and, where it is known, what would be right.
    pub reason: String,
    /// Whose ports are in the way, where that is what is wrong.
    pub clash: Option<PortClash>,
}

/// Ports that somebody else has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortClash {
    /// Who has them: a container, or a service of the NOS.
    pub owner: String,
    /// What the owner has.
    pub range: PortRange,
    /// The nearest range as long as the one asked for that nobody has.
    pub free: Option<PortRange>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// All that is wrong with a configuration, at least one thing, in the order of the lines.
/// Displays as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
    omitted: usize,
}

impl ConfigErrors {
    /// The errors: the first 100 when there are more.
    #[must_use]
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// How many errors are not among [`Self::errors`].
    #[must_use]
    pub fn omitted(&self) -> usize {
        self.omitted
    }

    pub(super) fn unreadable(file: &str, error: &io::Error) -> Self {
        Self::whole_file(file, None, format!("cannot be read: {error}"))
    }

    pub(super) fn not_text(file: &str, octets: &[u8], error: Utf8Error) -> Self {
        let (good, bad) = octets.split_at(error.valid_up_to());
        let line = 1 + good.iter().filter(|&&octet| octet == b'\n').count();
        let reason = match octets {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "is UTF-16; save it as UTF-8".to_owned(),
            _ => format!(
                "is not UTF-8 text: octet 0x{:02x} at offset {}",
                bad.first().copied().unwrap_or_default(),
                good.len()
            ),
        };
        Self::whole_file(file, Some(line), reason)
    }

    /// A file that is good, and cannot be followed for what `key` says.
    pub(super) fn not_now(file: &str, key: &str, reason: &str) -> Self {
        let mut errors = Self::whole_file(file, None, reason.to_owned());
        for error in &mut errors.errors {
            error.key = Some(key.to_owned());
        }
        errors
    }

    fn whole_file(file: &str, line: Option<usize>, reason: String) -> Self {
        let error = ConfigError {
            file: file.to_owned(),
            line,
            key: None,
            reason,
            clash: None,
        };
        Self {
            errors: vec![error],
            omitted: 0,
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.errors.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        match self.omitted {
            0 => Ok(()),
            1 => write!(f, "\nand 1 more error"),
            more => write!(f, "\nand {more} more errors"),
        }
    }
}

impl core::error::Error for ConfigErrors {}

/// Collects errors while a text is read.
#[derive(Debug)]
pub(super) struct Report<'a> {
    file: &'a str,
    /// Offset of the first octet of each line but the first.
    line_starts: Vec<usize>,
    /// Offsets from here on are none of the file's: they are of what was added at run time.
    end: usize,
    /// The first offset that is nothing's yet.
    next: Cell<usize>,
    found: RefCell<Vec<Found>>,
}

#[derive(Debug)]
struct Found {
    offset: usize,
    key: String,
    reason: String,
    clash: Option<PortClash>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a str, text: &str) -> Self {
        let newlines = text
            .bytes()
            .enumerate()
            .filter(|&(_, octet)| octet == b'\n');
        Self {
            file,
            line_starts: newlines.map(|(offset, _)| offset + 1).collect(),
            end: text.len() + 1,
            next: Cell::new(text.len() + 1),
            found: RefCell::default(),
        }
    }

    /// Notes that something is wrong at `place`.
    pub(super) fn error(&self, place: Place, reason: impl Into<String>) {
        self.error_at(place.offset, place.key(), reason.into());
    }

    /// Notes that something is wrong with a key that is none of ours.
    pub(super) fn error_at(&self, offset: usize, key: String, reason: String) {
        self.found.borrow_mut().push(Found {
            offset,
            key,
            reason,
            clash: None,
        });
    }

    /// Notes that ports at `place` are somebody else's.
    pub(super) fn clash(&self, place: Place, reason: String, clash: PortClash) {
        self.found.borrow_mut().push(Found {
            offset: place.offset,
            key: place.key(),
            reason,
            clash: Some(clash),
        });
    }

    /// The first of so many offsets behind those of the file, for what was added at run time.
    pub(super) fn offsets(&self, count: usize) -> usize {
        let first = self.next.get();
        self.next.set(first + count + 1);
        first
    }

    /// Whether `place` is not of the file.
    pub(super) fn is_added(&self, place: Place) -> bool {
        place.offset >= self.end
    }

    /// `line 12`, or that it was added at run time.
    pub(super) fn spot(&self, place: Place) -> String {
        match self.is_added(place) {
            true => "added at run time".to_owned(),
            false => format!("line {}", self.line_at(place.offset)),
        }
    }

    /// `on line 12`, or that it was added at run time.
    pub(super) fn on(&self, place: Place) -> String {
        let spot = self.spot(place);
        match self.is_added(place) {
            true => spot,
            false => format!("on {spot}"),
        }
    }

    /// The line that has the octet at `offset`, from 1.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        1 + self.line_starts.partition_point(|&start| start <= offset)
    }

    /// The errors if there are any, else `value`, which there must be then.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        match value {
            Some(value) if self.found.borrow().is_empty() => Ok(value),
            _ => Err(self.into_errors()),
        }
    }

    fn into_errors(self) -> ConfigErrors {
        let mut found = self.found.take();
        found.sort_by_key(|error| error.offset);
        let omitted = found.len().saturating_sub(MAX_ERRORS);
        found.truncate(MAX_ERRORS);
        let errors = found.into_iter().map(|error| ConfigError {
            file: self.file.to_owned(),
            line: (error.offset < self.end).then(|| self.line_at(error.offset)),
            key: Some(error.key),
            reason: error.reason,
            clash: error.clash,
        });
        ConfigErrors {
            errors: errors.collect(),
            omitted,
        }
    }
}

/// Reports each value that an earlier one equals.
pub(super) fn unique<T: Eq + Hash + ToString>(
    report: &Report<'_>,
    what: &str,
    values: impl Iterator<Item = At<T>>,
) {
    let mut seen = HashMap::new();
    for At { value, place } in values {
        let text = value.to_string();
        let first = *seen.entry(value).or_insert(place);
        if first != place {
            let on = report.on(first);
            report.error(place, format!("{what} \"{text}\" is already {on}"));
        }
    }
}
