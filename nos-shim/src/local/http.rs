//! One request and its answer (RFC 9110, RFC 9112). The connection is closed after it.

use std::sync::Arc;

/// The status as JSON text.
pub(super) type Status = Arc<str>;

/// Octets of the longest request head.
const MAX_HEAD: usize = 8192;
/// Header fields of a request.
const MAX_FIELDS: usize = 64;

/// How far an exchange has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress<'a> {
    /// The request is not complete yet.
    Receiving,
    /// This remains to be sent.
    Sending(&'a [u8]),
    /// All has been sent, or nothing will be.
    Done,
}

/// One request and its answer. What comes after the request head is thrown away.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    head: Vec<u8>,
    answer: Option<Vec<u8>>,
    sent: usize,
}

impl Exchange {
    /// Takes octets from the client, and makes the answer when the request is complete or wrong.
    pub(super) fn receive(&mut self, octets: &[u8], status: &Status) {
        if self.answer.is_some() {
            return;
        }
        let room = MAX_HEAD - self.head.len();
        self.head
            .extend_from_slice(&octets[..octets.len().min(room)]);
        self.answer = respond(&self.head, status).or_else(|| {
            let full = self.head.len() == MAX_HEAD;
            full.then(|| error("431 Request Header Fields Too Large"))
        });
        if self.answer.is_some() {
            self.head = Vec::new();
        }
    }

    /// The client sends nothing more.
    pub(super) fn end_of_input(&mut self) {
        if self.answer.is_none() {
            self.answer = Some(Vec::new());
        }
    }

    pub(super) fn progress(&self) -> Progress<'_> {
        match &self.answer {
            None => Progress::Receiving,
            Some(answer) => match answer.get(self.sent..) {
                None | Some([]) => Progress::Done,
                Some(rest) => Progress::Sending(rest),
            },
        }
    }

    /// `octets` of the answer have been sent.
    pub(super) fn sent(&mut self, octets: usize) {
        self.sent += octets;
    }

    pub(super) fn is_done(&self) -> bool {
        self.progress() == Progress::Done
    }
}

/// The answer to a request head, or `None` while that is incomplete.
fn respond(head: &[u8], status: &Status) -> Option<Vec<u8>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => Some(answer(&request, status)),
        Err(httparse::Error::TooManyHeaders) => Some(error("431 Request Header Fields Too Large")),
        Err(httparse::Error::Version) => Some(error("505 HTTP Version Not Supported")),
        Err(_) => Some(error("400 Bad Request")),
    }
}

fn answer(request: &httparse::Request<'_, '_>, status: &Status) -> Vec<u8> {
    let hosts = request.headers.iter();
    let hosts = hosts
        .filter(|field| field.name.eq_ignore_ascii_case("host"))
        .count();
    // RFC 9112 §3.2.
    if hosts > 1 || hosts == 0 && request.version == Some(1) {
        return error("400 Bad Request");
    }
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => {
            return message(
                "405 Method Not Allowed",
                "text/plain",
                "",
                "Allow: GET, HEAD\r\n",
            );
        }
    };
    let path = request.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let mut answer = match path {
        "/" => message("200 OK", "text/html; charset=utf-8", &page(status), FRESH),
        "/status.json" => message("200 OK", "application/json", status, FRESH),
        _ => error("404 Not Found"),
    };
    if head_only {
        let end = answer.windows(4).position(|octets| octets == b"\r\n\r\n");
        answer.truncate(end.map_or(0, |end| end + 4));
    }
    answer
}

/// Counters change: nobody should show old ones.
const FRESH: &str = "Cache-Control: no-store\r\n";

fn error(status_line: &str) -> Vec<u8> {
    message(status_line, "text/plain", &format!("{status_line}\n"), "")
}

/// A complete response; `more` are header fields, each with its line end.
fn message(status_line: &str, kind: &str, body: &str, more: &str) -> Vec<u8> {
    let len = body.len();
    format!(
        "HTTP/1.1 {status_line}\r\nServer: nos-relay\r\nContent-Type: {kind}\r\n\
         Content-Length: {len}\r\n{more}Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

fn page(status: &str) -> String {
    let status = status.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html>\n<title>nos-relay</title>\n<h1>nos-relay</h1>\n\
         <p>The same as <a href=\"/status.json\">JSON</a>.</p>\n<pre>{status}</pre>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"a<b": 1}"#;

    /// The answer to `request`, given to the exchange in pieces of `piece` octets.
    fn exchange(request: &[u8], piece: usize) -> Option<String> {
        let status = Status::from(JSON);
        let mut exchange = Exchange::default();
        for octets in request.chunks(piece) {
            exchange.receive(octets, &status);
        }
        match exchange.progress() {
            Progress::Receiving => None,
            Progress::Done => Some(String::new()),
            Progress::Sending(octets) => Some(String::from_utf8(octets.to_vec()).unwrap()),
        }
    }

    fn ask(request: &str) -> String {
        let whole = exchange(request.as_bytes(), usize::MAX).expect("an answer");
        let dribbled = exchange(request.as_bytes(), 1).expect("an answer");
        assert_eq!(whole, dribbled);
        whole
    }

    fn body(response: &str) -> &str {
        response.split_once("\r\n\r\n").unwrap().1
    }

    #[test]
    fn json_is_served_as_it_is() {
        let response = ask("GET /status.json HTTP/1.1\r\nHost: nos\r\n\r\n");
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("\r\nContent-Type: application/json\r\n"));
        assert!(response.contains(&format!("\r\nContent-Length: {}\r\n", JSON.len())));
        assert!(response.contains("\r\nConnection: close\r\n"));
        assert_eq!(body(&response), JSON);
    }

    #[test]
    fn the_page_shows_it_escaped() {
        let response = ask("GET /?x=1 HTTP/1.0\r\n\r\n");
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(body(&response).contains(r#"<pre>{"a&lt;b": 1}</pre>"#));
    }

    #[test]
    fn head_has_the_same_head_and_no_body() {
        let get = ask("GET / HTTP/1.1\r\nHost: nos\r\n\r\n");
        let head = ask("HEAD / HTTP/1.1\r\nHost: nos\r\n\r\n");
        assert_eq!(body(&head), "");
        assert!(get.starts_with(&head));
    }

    #[test]
    fn other_requests_are_refused() {
        for (request, status) in [
            ("GET /etc HTTP/1.1\r\nHost: nos\r\n\r\n", "404"),
            ("POST / HTTP/1.1\r\nHost: nos\r\n\r\nbody", "405"),
            ("GET / HTTP/1.1\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", "505"),
            ("\0\x01\x02", "400"),
            ("GET /\r\n\r\n", "400"),
        ] {
            let response = ask(request);
            assert!(
                response.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request}: {response}"
            );
        }
        assert!(ask("PUT / HTTP/1.1\r\nHost: nos\r\n\r\n").contains("\r\nAllow: GET, HEAD\r\n"));
    }

    #[test]
    fn heads_are_bounded() {
        let fields = "X: y\r\n".repeat(MAX_FIELDS + 1);
        let many = format!("GET / HTTP/1.1\r\nHost: nos\r\n{fields}\r\n");
        assert!(ask(&many).starts_with("HTTP/1.1 431 "));
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(2 * MAX_HEAD));
        assert!(ask(&long).starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn a_request_that_ends_early_gets_no_answer() {
        let mut exchange = Exchange::default();
        exchange.receive(b"GET / HT", &Status::from(JSON));
        assert_eq!(exchange.progress(), Progress::Receiving);
        exchange.end_of_input();
        assert!(exchange.is_done());
    }

    proptest::proptest! {
        #[test]
        fn any_octets_are_taken(octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = exchange(&octets, 7);
        }
    }
}
