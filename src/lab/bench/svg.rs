//! The results as bars: a group for each row, a bar for each path, as SVG.
//!
//! Each group has a scale of its own, from 0 to its greatest value. A line across the end of a bar
//! shows the least and the greatest sample.

use std::fmt::Write;

use super::report::figure;
use super::results::{Document, Figure};

const WIDTH: f64 = 860.0;
/// Where bars begin: names of paths are left of it.
const LEFT: f64 = 150.0;
/// The longest bar; the figure is right of it.
const LONGEST: f64 = 560.0;
const BAR: f64 = 16.0;
const STEP: f64 = 20.0;
const HEADING: f64 = 34.0;
const MARGIN: f64 = 16.0;

/// Draws all figures.
#[must_use]
pub fn draw(document: &Document) -> String {
    let mut body = String::new();
    let mut y = MARGIN;
    let groups = document.results.chunk_by(|a, b| a.row == b.row);
    for group in groups {
        y = draw_group(&mut body, y, group);
    }
    let height = y + MARGIN;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">
<title>nos-relay bench {}</title>
<rect width="100%" height="100%" fill="#ffffff"/>
{body}</svg>
"##,
        escape(&document.version)
    )
}

/// Draws a row's bars from `y` down; returns where the next row begins.
fn draw_group(body: &mut String, y: f64, group: &[Figure]) -> f64 {
    let Some(first) = group.first() else { return y };
    let greatest = group.iter().map(|one| one.spread.max).fold(0.0, f64::max);
    let better = match first.better {
        super::plan::Better::Higher => "more is better",
        super::plan::Better::Lower => "less is better",
    };
    let heading = format!("{}: {}, {} ({better})", first.row, first.what, first.unit);
    // Writing to a string does not fail.
    let _ = writeln!(
        body,
        r#"<text x="{MARGIN}" y="{}" font-weight="bold">{}</text>"#,
        y + 16.0,
        escape(&heading)
    );
    let mut y = y + HEADING - 8.0;
    for one in group {
        draw_bar(body, y, one, greatest);
        y += STEP;
    }
    y + MARGIN
}

fn draw_bar(body: &mut String, y: f64, one: &Figure, greatest: f64) {
    let length = |value: f64| match greatest > 0.0 {
        true => value / greatest * LONGEST,
        false => 0.0,
    };
    let [least, middle, most] =
        [one.spread.min, one.spread.median, one.spread.max].map(|value| LEFT + length(value));
    let text = y + 12.5;
    let _ = writeln!(
        body,
        r#"<text x="{}" y="{text}" text-anchor="end">{}</text>"#,
        LEFT - 8.0,
        escape(&one.path)
    );
    let _ = writeln!(
        body,
        r#"<rect x="{LEFT}" y="{y}" width="{:.1}" height="{BAR}" fill="{}"/>"#,
        middle - LEFT,
        colour(&one.path)
    );
    let line = y + BAR / 2.0;
    let _ = writeln!(
        body,
        r##"<line x1="{least:.1}" y1="{line}" x2="{most:.1}" y2="{line}" stroke="#222222" stroke-width="1.5"/>"##
    );
    let _ = writeln!(
        body,
        r#"<text x="{:.1}" y="{text}">{}</text>"#,
        most + 8.0,
        figure(one.spread.median)
    );
}

fn colour(path: &str) -> &'static str {
    match path.split('-').next() {
        Some("relay") => "#2a78b8",
        Some("bare") => "#9aa5b1",
        Some("kernel") => "#5b8c5a",
        _ => "#c98a3b",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::path::Path;
    use super::super::results::tests::document;
    use super::*;

    #[test]
    fn the_longest_bar_is_the_greatest_value() {
        let document = document(
            "tcp-out",
            &[
                (Path::RelayTap, &[5.0, 5.0, 5.0]),
                (Path::BareTap, &[10.0, 10.0, 10.0]),
            ],
        );
        let svg = draw(&document);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains(r#"width="560.0""#), "{svg}");
        assert!(svg.contains(r#"width="280.0""#), "{svg}");
        assert_eq!(svg.matches("<rect x=").count(), 2);
        assert!(svg.contains("tcp-out: bulk TCP"));
    }

    #[test]
    fn a_row_of_zeros_has_bars_without_length() {
        let svg = draw(&document("idle", &[(Path::RelayTap, &[0.0])]));
        assert!(
            svg.contains(r#"width="0.0""#) && !svg.contains("NaN"),
            "{svg}"
        );
    }

    #[test]
    fn text_cannot_break_out() {
        assert_eq!(escape("a<b>&\"c"), "a&lt;b&gt;&amp;&quot;c");
    }
}
