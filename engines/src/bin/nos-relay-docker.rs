//! Docker's plugin: network driver and IPAM driver, on a Unix socket where Docker looks for plugins.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use nos_relay_engines::daemon::Daemon;
use nos_relay_engines::docker::{MAX_BODY, Plugin, Reply};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// The media type of the plugin protocol.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

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

fn serve(arguments: &Arguments) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let plugin = Arc::new(Plugin::new(Daemon::at(&arguments.control)));
    runtime.block_on(async {
        let listener = listen(&arguments.socket)?;
        match plugin.collect() {
            Ok(gone) => gone
                .iter()
                .for_each(|name| eprintln!("{name}: its sandbox is gone")),
            // It is asked again with each call.
            Err(error) => eprintln!("nos-relay-docker: {error}"),
        }
        println!("ready");
        let ended = accept(&listener, &plugin).await;
        // Whoever takes its place makes its own.
        let _ = std::fs::remove_file(&arguments.socket);
        ended
    })
}

/// Listens at `path`, in place of what one that was killed has left.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(named)?;
    }
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            let other = "another plugin listens there";
            return Err(named(io::Error::new(io::ErrorKind::AddrInUse, other)));
        }
        std::fs::remove_file(path).map_err(named)?;
    }
    UnixListener::bind(path).map_err(named)
}

async fn accept(listener: &UnixListener, plugin: &Arc<Plugin>) -> io::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    loop {
        let stream = tokio::select! {
            _ = terminated.recv() => return Ok(()),
            _ = interrupted.recv() => return Ok(()),
            accepted = listener.accept() => accepted?.0,
        };
        let plugin = Arc::clone(plugin);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&plugin), request));
            let mut server = hyper::server::conn::http1::Builder::new();
            server
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT);
            // A client that goes away before its answer is told nothing.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    plugin: Arc<Plugin>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let reply = match body {
        Ok(body) => {
            let body = body.to_bytes();
            // The daemon is asked, and waited for.
            let task = tokio::task::spawn_blocking(move || plugin.answer(&path, &body));
            task.await
                .unwrap_or_else(|error| failed(500, &error.to_string()))
        }
        Err(error) => failed(400, &format!("the body cannot be read: {error}")),
    };
    let mut response = Response::new(Full::new(Bytes::from(reply.body.to_string())));
    let media_type = header::HeaderValue::from_static(MEDIA_TYPE);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    if let Ok(status) = hyper::StatusCode::from_u16(reply.status) {
        *response.status_mut() = status;
    }
    Ok(response)
}

fn failed(status: u16, reason: &str) -> Reply {
    Reply {
        status,
        body: serde_json::json!({"Err": reason}),
    }
}
