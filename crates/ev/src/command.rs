//! Which command does what.

mod event;
mod host;
mod pool;
mod pvm;
mod stats;
mod vm;

use std::path::Path;

use clap::CommandFactory;
use ev_api::pool::SettingsView;

use crate::args::{Arguments, Command, Global};
use crate::connect;
use crate::exit::Failure;

/// Runs the command on a small runtime.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("cannot start: {error}")))?;
    let result = runtime.block_on(dispatch(&arguments.global, arguments.command));
    // A read of standard input that still waits must not keep the program.
    runtime.shutdown_background();
    result
}

/// `ev.1`, and `ev-pvm-protect.1` and so on for each command.
fn man_pages(folder: &Path) -> Result<(), Failure> {
    clap_mangen::generate_to(Arguments::command(), folder).map_err(|error| {
        Failure::local(format!("cannot write man pages into {}: {error}", folder.display()))
            .hint("name a folder that exists and that you may write to")
    })
}

async fn dispatch(global: &Global, command: Command) -> Result<(), Failure> {
    let format = global.output;
    match command {
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "ev", &mut std::io::stdout());
            Ok(())
        }
        Command::ManPages { folder } => man_pages(&folder),
        Command::PoolCreate { name } => pool::create(global, name).await,
        Command::Login { address } => pool::login(global, &address).await,
        Command::HostJoin { token } => host::join(global, token).await,
        other => {
            let client = connect::client(global)?;
            match other {
                Command::PoolShow => pool::show(&client, format).await,
                Command::PoolSet { copy_rate, scrub_interval, sync_at_once, blackout } => {
                    let change = SettingsView {
                        scrub_interval_s: scrub_interval,
                        copy_rate_limit_bytes: copy_rate,
                        sync_at_once,
                        blackout_ms: blackout,
                    };
                    pool::set(&client, format, change).await
                }
                Command::TokenCreate { name } => pool::token_create(&client, format, name).await,
                Command::TokenList => pool::token_list(&client, format).await,
                Command::TokenRevoke { id } => pool::token_revoke(&client, &id).await,
                Command::HostToken { valid } => host::token(&client, format, valid).await,
                Command::HostRemove { host, force } => host::remove(&client, &host, force).await,
                Command::HostList => host::list(&client, format).await,
                Command::QuorumAdd { name, invitation } => host::quorum_add(&client, name, invitation).await,
                Command::QuorumRemove { name } => host::quorum_remove(&client, &name).await,
                Command::NetworkList => pool::network_list(&client, format).await,
                Command::NetworkAdd { name, bridge } => pool::network_add(&client, format, name, bridge).await,
                Command::LibraryList => pool::library_list(&client, format).await,
                Command::VmCreate(arguments) => vm::create(&client, format, arguments).await,
                Command::VmImport(arguments) => vm::import(&client, format, arguments).await,
                Command::VmList => vm::list(&client, format).await,
                Command::VmDelete { vm, yes } => vm::delete(&client, &vm, yes).await,
                other => pvm::dispatch(&client, format, other).await,
            }
        }
    }
}
