//! Tables read in pages, so that whoever reads a long one does not stop who works with it.
//!
//! A page is at most [`PAGE`] rows, and costs about as much to make however long the table is. The
//! next page begins at the cursor that came with the last. A table may change between two pages:
//! what changed may be read as it was before or as it is after, twice or not at all; every row that
//! did not change is read.

/// Rows of a page at most.
pub const PAGE: usize = 64;

/// Places of a table that are looked at for a page at most: empty ones count too.
pub(crate) const PLACES: usize = 16 * PAGE;

/// A part of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<R, C> {
    /// At most [`PAGE`] rows; there may be none although others follow.
    pub rows: Vec<R>,
    /// Where the next page begins; `None` behind the last.
    pub next: Option<C>,
}

impl<R, C> Page<R, C> {
    /// A page behind the end of a table.
    #[must_use]
    pub fn end() -> Self {
        Self {
            rows: Vec::new(),
            next: None,
        }
    }

    /// The same rows made into others.
    pub fn map<S>(self, row: impl FnMut(R) -> S) -> Page<S, C> {
        Page {
            rows: self.rows.into_iter().map(row).collect(),
            next: self.next,
        }
    }
}

/// Every row of a table of which `read` reads the page at a cursor.
///
/// # Errors
///
/// The first of `read`.
pub fn read_all<R, C, E>(
    mut read: impl FnMut(Option<C>) -> Result<Page<R, C>, E>,
) -> Result<Vec<R>, E> {
    let mut rows = Vec::new();
    let mut cursor = None;
    loop {
        let page = read(cursor)?;
        rows.extend(page.rows);
        cursor = page.next;
        if cursor.is_none() {
            return Ok(rows);
        }
    }
}

/// The same where reading cannot fail.
#[cfg(test)]
pub(crate) fn all<R, C>(mut read: impl FnMut(Option<C>) -> Page<R, C>) -> Vec<R> {
    let Ok(rows) = read_all(|cursor| Ok::<_, core::convert::Infallible>(read(cursor)));
    rows
}
