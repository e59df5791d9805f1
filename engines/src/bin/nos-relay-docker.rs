//! Docker's plugin: network driver and IPAM driver, on a Unix socket where Docker looks for plugins.

use std::error::Error;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use clap::Parser;
use nos_relay_engines::daemon::Daemon;
use nos_relay_engines::docker::{MAX_BODY, Plugin, failed};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tiny_http::{Header, Request, Response, Server};

/// The media type of the plugin protocol.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// Calls that are answered at a time: each waits for the daemon, which serves 16 clients.
const WORKERS: usize = 8;

/// Has containers that Docker starts on the NOS's address.
#[derive(Debug, Parser)]
#[command(name = "nos-relay-docker", version)]
struct Arguments {
    /// Where Docker finds the plugin: a socket in a directory in which it looks for plugins, called as the
    /// driver is.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/docker/plugins/nos-relay.sock"
    )]
    socket: PathBuf,
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = "/run/nos-relay.sock")]
    control: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nos-relay-docker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let plugin = Arc::new(Plugin::new(Daemon::at(&arguments.control)));
    let server = Arc::new(listen(&arguments.socket)?);
    match plugin.collect() {
        Ok(gone) => gone
            .iter()
            .for_each(|name| eprintln!("{name}: its sandbox is gone")),
        // It is asked again with each call.
        Err(error) => eprintln!("nos-relay-docker: {error}"),
    }
    for _ in 0..WORKERS {
        let (server, plugin) = (Arc::clone(&server), Arc::clone(&plugin));
        thread::Builder::new().spawn(move || {
            while let Ok(request) = server.recv() {
                answer(&plugin, request);
            }
        })?;
    }
    println!("ready");
    signals.forever().next();
    // Whoever takes its place makes its own.
    Ok(std::fs::remove_file(&arguments.socket)?)
}

/// Listens at `path`, in place of what one that was killed has left.
fn listen(path: &Path) -> Result<Server, Box<dyn Error + Send + Sync>> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(named)?;
    }
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            let other = "another plugin listens there";
            return Err(named(io::Error::new(io::ErrorKind::AddrInUse, other)).into());
        }
        std::fs::remove_file(path).map_err(named)?;
    }
    Server::http_unix(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn answer(plugin: &Plugin, mut request: Request) {
    let mut body = Vec::new();
    // One octet more than is allowed says that there is more.
    let mut limited = request.as_reader().take(MAX_BODY as u64 + 1);
    let reply = match limited.read_to_end(&mut body) {
        Ok(_) => plugin.answer(request.url(), &body),
        Err(error) => failed(400, &format!("the body cannot be read: {error}")),
    };
    let response = Response::from_string(reply.body.to_string()).with_status_code(reply.status);
    let media_type = Header::from_bytes("Content-Type", MEDIA_TYPE);
    let response = match media_type {
        Ok(header) => response.with_header(header),
        Err(()) => response,
    };
    // A client that goes away before its answer is told nothing.
    let _ = request.respond(response);
}
