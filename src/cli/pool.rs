//! Commands of pools of addresses.

use std::io::{self, Write};

use clap::{Args, Subcommand, ValueEnum};

use crate::control::api::{self, ControlError, QUERY_TIMEOUT, Request, Response, Table};
use crate::outcome::Outcome;

use super::ControlArgs;
use super::change::{AskArgs, Given, InspectArgs, LsArgs, NameArgs, respond, text};

/// What `pool` does.
#[derive(Clone, Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool.
    Create(CreateArgs),
    /// Remove a pool of which nobody holds an address.
    Rm(NameArgs),
    /// Give a pool more addresses, out of what it lies in.
    Grow(ResizeArgs),
    /// Have a pool give addresses back that nobody holds.
    Shrink(ResizeArgs),
    /// List the pools.
    Ls(LsArgs),
    /// Show a pool, and its addresses that somebody has, had, or is to have, as JSON.
    Inspect(InspectArgs),
    /// Have a workload, and nobody else, get an address whenever it comes; say which.
    Reserve(ReserveArgs),
    /// Forget what is said of an address, of a workload, or of who holds some.
    Release(ReleaseArgs),
    /// Keep an address for an engine, and say which.
    Allocate(AllocateArgs),
}

/// What a pool is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One application, whose workloads keep their addresses for good.
    Application,
    /// A tenant, or a zone.
    Netspace,
    /// Who names no pool.
    Default,
}

/// How many addresses, or which.
#[derive(Args, Clone, Debug)]
pub struct AmountArgs {
    /// How many addresses; one of IPv4 and the one of IPv6 beside it count as one.
    #[arg(long, value_name = "N", conflicts_with = "range")]
    pub size: Option<u32>,
    /// Which addresses, as in 203.0.113.64/28 or 203.0.113.64-203.0.113.79.
    #[arg(long, value_name = "ADDRESSES")]
    pub range: Option<String>,
}

/// Arguments of `pool create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// The pool's name.
    pub name: String,
    /// What it is for.
    #[arg(long, value_name = "KIND")]
    pub kind: Kind,
    /// The VRF in which its addresses are.
    #[arg(long, value_name = "NAME")]
    pub vrf: Option<String>,
    /// The netspace that an application's pool lies in, or total.
    #[arg(long, value_name = "POOL")]
    pub inside: Option<String>,
    /// What it has to begin with.
    #[command(flatten)]
    pub amount: AmountArgs,
    /// By how many it grows and shrinks; 0 keeps its size.
    #[arg(long, value_name = "N")]
    pub step: Option<u32>,
    /// It grows when fewer are available.
    #[arg(long, value_name = "N")]
    pub low: Option<u32>,
    /// It shrinks when more are available.
    #[arg(long, value_name = "N")]
    pub high: Option<u32>,
    /// It has so many at most.
    #[arg(long, value_name = "N")]
    pub max: Option<u32>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `pool grow` and `pool shrink`.
#[derive(Args, Clone, Debug)]
pub struct ResizeArgs {
    /// The pool's name.
    pub name: String,
    /// By what.
    #[command(flatten)]
    pub amount: AmountArgs,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `pool reserve`.
#[derive(Args, Clone, Debug)]
pub struct ReserveArgs {
    /// The pool's name.
    pub name: String,
    /// Whose the address is from then on.
    #[arg(long, value_name = "WORKLOAD")]
    pub workload: String,
    /// Which address; any that is free if it is left out.
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `pool release`.
#[derive(Args, Clone, Debug)]
#[group(id = "what", required = true, multiple = false, args = ["address", "workload", "holder"])]
pub struct ReleaseArgs {
    /// The pool's name.
    pub name: String,
    /// An address: whose it was, or is to be.
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// All that a workload had, or is to have.
    #[arg(long, value_name = "WORKLOAD")]
    pub workload: Option<String>,
    /// All that is kept for an engine by this name; it stays what its workloads get first.
    #[arg(long, value_name = "HOLDER")]
    pub holder: Option<String>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `pool allocate`.
#[derive(Args, Clone, Debug)]
pub struct AllocateArgs {
    /// The pool's name; that of who names none if it is left out.
    pub name: Option<String>,
    /// By what name it is kept, as in engine/7f3a; asked for again, it is the same address.
    #[arg(long, value_name = "HOLDER")]
    pub holder: String,
    /// For what.
    #[arg(long, value_name = "WORKLOAD")]
    pub workload: Option<String>,
    /// Which address; one that fits if it is left out.
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// Its VRF.
    #[arg(long, value_name = "NAME")]
    pub vrf: Option<String>,
    /// How to ask.
    #[command(flatten)]
    pub ask: AskArgs,
}

impl PoolCommand {
    /// Runs `pool`: results to `out`, errors to `err`.
    ///
    /// # Errors
    ///
    /// When neither can be written.
    pub fn run(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
        match self {
            Self::Create(args) => args.ask.run(&args.request(), out, err),
            Self::Rm(args) => {
                let name = Given::default().value("name", text(&args.name));
                args.ask.run(&Request::PoolRemove(name.0), out, err)
            }
            Self::Grow(args) => args.ask.run(&Request::PoolGrow(args.given().0), out, err),
            Self::Shrink(args) => args.ask.run(&Request::PoolShrink(args.given().0), out, err),
            Self::Ls(args) => respond(shown(&args.control, Table::Pools), args.json, out, err),
            Self::Inspect(args) => inspect(args, out, err),
            Self::Reserve(args) => {
                let given = Given::default()
                    .value("pool", text(&args.name))
                    .value("workload", text(&args.workload))
                    .value("address", args.address.clone());
                args.ask.run(&Request::PoolReserve(given.0), out, err)
            }
            Self::Release(args) => {
                let given = Given::default()
                    .value("pool", text(&args.name))
                    .value("address", args.address.clone())
                    .value("workload", args.workload.clone())
                    .value("holder", args.holder.clone());
                args.ask.run(&Request::PoolRelease(given.0), out, err)
            }
            Self::Allocate(args) => {
                let given = Given::default()
                    .value("pool", args.name.clone())
                    .value("holder", text(&args.holder))
                    .value("workload", args.workload.clone())
                    .value("address", args.address.clone())
                    .value("vrf", args.vrf.clone());
                args.ask.run(&Request::PoolAllocate(given.0), out, err)
            }
        }
    }
}

fn shown(control: &ControlArgs, table: Table) -> Result<Response, ControlError> {
    api::query(&control.path, &Request::Show { table }, QUERY_TIMEOUT)
}

impl Given {
    fn amount(self, amount: &AmountArgs) -> Self {
        self.value("size", amount.size.map(i64::from))
            .value("range", amount.range.clone())
    }
}

impl CreateArgs {
    fn request(&self) -> Request {
        let kind = match self.kind {
            Kind::Application => "application",
            Kind::Netspace => "netspace",
            Kind::Default => "default",
        };
        let pool = Given::default()
            .value("name", text(&self.name))
            .value("kind", text(kind))
            .value("vrf", self.vrf.clone())
            .value("inside", self.inside.clone())
            .amount(&self.amount)
            .value("step", self.step.map(i64::from))
            .value("low", self.low.map(i64::from))
            .value("high", self.high.map(i64::from))
            .value("max", self.max.map(i64::from));
        let request = Given::default().value("pool", Some(pool.0));
        Request::PoolCreate(request.0)
    }
}

impl ResizeArgs {
    fn given(&self) -> Given {
        let given = Given::default().value("pool", text(&self.name));
        given.amount(&self.amount)
    }
}

/// Shows a pool and its addresses.
fn inspect(args: &InspectArgs, out: &mut impl Write, err: &mut impl Write) -> io::Result<Outcome> {
    let pools = shown(&args.control, Table::Pools);
    let addresses = shown(&args.control, Table::PoolAddresses);
    match (pools, addresses) {
        (Ok(Response::Pools(mut pools)), Ok(Response::PoolAddresses(mut addresses))) => {
            pools.retain(|row| row.name == args.name);
            addresses.retain(|row| row.pool == args.name);
            addresses.sort();
            if pools.is_empty() {
                writeln!(err, "nos-relay: there is no pool \"{}\"", args.name)?;
                return Ok(Outcome::Failure);
            }
            let both = serde_json::json!({ "pools": pools, "addresses": addresses });
            writeln!(out, "{}", serde_json::to_string_pretty(&both)?)?;
            Ok(Outcome::Success)
        }
        (Err(error), _) | (_, Err(error)) => respond(Err(error), true, out, err),
        (Ok(other), _) => respond(Ok(other), true, out, err),
    }
}
