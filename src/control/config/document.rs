//! TOML text as sections of keys and values that know where they stand.
//!
//! A [`Section`] is asked for each key that its table may have; what was never asked for is an
//! unknown key. Values are read by functions from [`super::values`].

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::MAX_TEXT;
use super::place::{At, Place};
use super::report::Report;
use super::values::{one_line, quoted, shown, suggestion};

/// An entry of a list of values and tables.
pub(super) enum Entry<'a, T> {
    /// A value.
    Value(At<T>),
    /// A table.
    Table(Section<'a>),
}

/// Reads one value, or says what is wrong with it.
pub(super) type Reader<T> = fn(&DeValue<'_>) -> Result<T, String>;

/// Parses the syntax; `None` after reporting what is wrong with it.
pub(super) fn parse<'a>(report: &Report<'_>, text: &'a str) -> Option<Spanned<DeTable<'a>>> {
    if text.len() > MAX_TEXT {
        let reason = format!("is longer than {MAX_TEXT} octets, the most that is read");
        report.error(Place::top("syntax"), reason);
        return None;
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Some(document);
    }
    report_syntax(report, text, &errors);
    None
}

/// Reports the error that comes first in the text: others may follow from it.
fn report_syntax(report: &Report<'_>, text: &str, errors: &[toml::de::Error]) {
    let start = |error: &&toml::de::Error| error.span().unwrap_or_default().start;
    let Some(first) = errors.iter().min_by_key(start) else {
        return;
    };
    let (before, after) = text.split_at_checked(start(&first)).unwrap_or((text, ""));
    let line_start = before.rsplit('\n').next().unwrap_or_default();
    let line_end = after.lines().next().unwrap_or_default();
    let line = format!("{line_start}{line_end}");
    let place = Place::new(before.len(), "", "syntax");
    report.error(
        place,
        format!("{}, in: {}", first.message(), one_line(line.trim())),
    );
}

/// A table that is being read.
pub(super) struct Section<'a> {
    report: &'a Report<'a>,
    table: &'a DeTable<'a>,
    /// What is added to offsets in the text, of one that is not the file.
    base: usize,
    /// Offset of the header, for what is missing.
    offset: usize,
    name: &'static str,
    known: Vec<&'static str>,
    sound: bool,
}

impl<'a> Section<'a> {
    /// The whole document.
    pub(super) fn root(report: &'a Report<'a>, document: &'a Spanned<DeTable<'a>>) -> Self {
        Self::new(report, document.get_ref(), 0, 0, "")
    }

    /// The whole of a text that is not the file: `base` is what [`Report::offsets`] gave it, `name`
    /// what its keys belong to.
    pub(super) fn added(
        report: &'a Report<'a>,
        document: &'a Spanned<DeTable<'a>>,
        base: usize,
        name: &'static str,
    ) -> Self {
        Self::new(report, document.get_ref(), base, base, name)
    }

    fn new(
        report: &'a Report<'a>,
        table: &'a DeTable<'a>,
        base: usize,
        offset: usize,
        name: &'static str,
    ) -> Self {
        Self {
            report,
            table,
            base,
            offset,
            name,
            known: Vec::new(),
            sound: true,
        }
    }

    /// Where the section's header stands; `key` is what is said to be wrong there.
    pub(super) fn header(&self, key: &'static str) -> Place {
        Place::new(self.offset, self.name, key)
    }

    /// Whether `key` is there, good or bad.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Notes an error, which makes the section unsound.
    pub(super) fn error(&mut self, place: Place, reason: impl Into<String>) {
        self.sound = false;
        self.report.error(place, reason);
    }

    /// The value of `key`, if it is there and good.
    pub(super) fn optional<T>(&mut self, key: &'static str, read: Reader<T>) -> Option<At<T>> {
        let value = self.value(key)?;
        self.read(key, value, read)
    }

    /// The value of `key`; its absence is an error that shows `example`.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: Reader<T>,
    ) -> Option<At<T>> {
        self.require(key, example);
        self.optional(key, read)
    }

    /// Notes an error that shows `example` if `key` is absent.
    pub(super) fn require(&mut self, key: &'static str, example: &str) {
        if !self.has(key) {
            let reason = format!("is missing; for example {key} = {example}");
            self.error(self.header(key), reason);
        }
    }

    /// The values of `key`, which may be an array or a single value; `None` if the key is absent.
    /// Bad ones are left out.
    pub(super) fn list<T>(&mut self, key: &'static str, read: Reader<T>) -> Option<Vec<At<T>>> {
        let value = self.value(key)?;
        let items = match value.get_ref() {
            DeValue::Array(items) => items,
            _ => core::slice::from_ref(value),
        };
        Some(
            items
                .iter()
                .filter_map(|item| self.read(key, item, read))
                .collect(),
        )
    }

    /// The entries of `key`, which may be an array or a single one. Tables among them are sections
    /// called `name`, which whoever takes them has to [`Self::close`].
    pub(super) fn mixed<T>(
        &mut self,
        key: &'static str,
        name: &'static str,
        read: Reader<T>,
    ) -> Vec<Entry<'a, T>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let items = match value.get_ref() {
            DeValue::Array(items) => items,
            _ => core::slice::from_ref(value),
        };
        let entry = |item: &'a Spanned<DeValue<'a>>| match item.get_ref() {
            DeValue::Table(table) => Some(Entry::Table(self.subsection(name, table, item))),
            _ => self.read(key, item, read).map(Entry::Value),
        };
        items.iter().filter_map(entry).collect()
    }

    /// Ends a section of this one: it is unsound if that is.
    pub(super) fn close(&mut self, section: Section<'_>) {
        self.sound &= section.finish();
    }

    /// What the section is called.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// As [`Self::list`], where an empty array is an error that gives `advice`.
    pub(super) fn nonempty<T>(
        &mut self,
        key: &'static str,
        advice: &str,
        read: Reader<T>,
    ) -> Option<Vec<At<T>>> {
        if let Some(value) = self.table.get(key)
            && value
                .get_ref()
                .as_array()
                .is_some_and(|items| items.is_empty())
        {
            self.error(self.place(key, value), format!("is empty; {advice}"));
        }
        self.list(key, read)
    }

    /// The table `[key]`.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Section<'a>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(self.subsection(key, table, value)),
            DeValue::Array(items) if is_tables(items) => {
                let reason = format!("may appear only once; write [{key}] instead of [[{key}]]");
                self.error(self.place(key, value), reason);
                None
            }
            other => {
                let reason = format!("{} is not a table; write [{key}]", shown(other));
                self.error(self.place(key, value), reason);
                None
            }
        }
    }

    /// The tables `[[key]]`, and whether nothing else stood among them.
    pub(super) fn tables(&mut self, key: &'static str) -> (Vec<Section<'a>>, bool) {
        let Some(value) = self.value(key) else {
            return (Vec::new(), true);
        };
        let items = match value.get_ref() {
            DeValue::Array(items) => items,
            other => {
                let reason = format!("{} is not a list of tables; write [[{key}]]", shown(other));
                self.error(self.place(key, value), reason);
                return (Vec::new(), false);
            }
        };
        let sections: Vec<_> = items
            .iter()
            .filter_map(|item| self.element(key, item))
            .collect();
        let whole = sections.len() == items.len();
        (sections, whole)
    }

    /// Reports keys that nobody asked for. Whether the section had no error at all.
    pub(super) fn finish(mut self) -> bool {
        for (key, _) in self.table {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                self.sound = false;
                let reason = format!("unknown key{}", suggestion(name, &self.known));
                let offset = self.base + key.span().start;
                self.report.error_at(offset, self.full_key(name), reason);
            }
        }
        self.sound
    }

    /// The key as documented, if it were.
    fn full_key(&self, name: &str) -> String {
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let name = match name.len() <= 64 && name.chars().all(bare) {
            true => name.to_owned(),
            false => quoted(name),
        };
        match self.name {
            "" => name,
            section => format!("{section}.{name}"),
        }
    }

    fn element(&mut self, key: &'static str, item: &'a Spanned<DeValue<'a>>) -> Option<Self> {
        match item.get_ref() {
            DeValue::Table(table) => Some(self.subsection(key, table, item)),
            other => {
                let reason = format!("{} is not a table; write [[{key}]]", shown(other));
                self.error(self.place(key, item), reason);
                None
            }
        }
    }

    fn subsection(
        &self,
        name: &'static str,
        table: &'a DeTable<'a>,
        value: &Spanned<DeValue<'a>>,
    ) -> Self {
        let offset = self.base + value.span().start;
        Self::new(self.report, table, self.base, offset, name)
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.get(key)
    }

    fn place(&self, key: &'static str, value: &Spanned<DeValue<'_>>) -> Place {
        Place::new(self.base + value.span().start, self.name, key)
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        value: &Spanned<DeValue<'_>>,
        read: Reader<T>,
    ) -> Option<At<T>> {
        let place = self.place(key, value);
        match read(value.get_ref()) {
            Ok(value) => Some(At { value, place }),
            Err(reason) => {
                self.error(place, reason);
                None
            }
        }
    }
}

fn is_tables(items: &[Spanned<DeValue<'_>>]) -> bool {
    items.iter().any(|item| item.get_ref().is_table())
}
