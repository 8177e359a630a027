//! The command line of `ev-lab`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ev_lab::{Direction, DiskKind, Lab, LabName, LabOptions, Network, NodeStatus, RepairKind};

#[derive(Parser)]
#[command(name = "ev-lab", version, about = "Hosts on this machine, in network namespaces, with faults on demand")]
pub struct Arguments {
    /// The lab's name; several labs can be up at once
    #[arg(long, global = true, default_value = "lab")]
    name: String,
    /// The lab's folder [default: /var/tmp/ev-lab/NAME]
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build a lab and switch its machines on: hosts h1, h2, …, quorum servers q1, …, and a client on the VM network
    Up(Up),
    /// Remove the lab and whatever runs in it
    Down,
    /// What is there, what runs, and what is cut
    Status,
    /// Run a command inside a machine, for example `ev-lab exec h1 -- ev pool-show`
    Exec {
        machine: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Switch a machine off as a power cut does: all processes at once, no last words, unflushed writes lost
    ///
    /// What had reached the disk stays. What a program wrote without flushing it is lost, as on a machine whose disk keeps
    /// what it was told to keep.
    Kill {
        machine: String,
        /// Kill only the processes of this program (evd, ev-am, qemu-system-x86_64, …), with SIGKILL; the machine goes on
        #[arg(long)]
        only: Option<String>,
    },
    /// Switch a machine on again
    Start { machine: String },
    /// Stop all processes of a machine where they are
    Freeze { machine: String },
    /// Let a frozen machine go on
    Thaw { machine: String },
    /// Lose what two machines send each other
    Cut {
        first: String,
        second: String,
        /// Only on this network [default: all that both are on]
        #[arg(long)]
        network: Option<NetworkName>,
        /// Lose only what FIRST sends to SECOND
        #[arg(long)]
        one_way: bool,
    },
    /// End all cuts
    Heal,
    /// Pull a machine's cable out of a network: it loses its carrier
    Unplug { machine: String, network: NetworkName },
    /// Put a cable back
    Plug { machine: String, network: NetworkName },
    /// Let a machine send only so much into a network, until it is switched off
    Slow {
        machine: String,
        network: NetworkName,
        /// Mbit per second; 0 for no limit
        mbit: u64,
    },
    /// Let every access to a host's disk fail with an I/O error
    FailDisk {
        host: String,
        #[arg(long, default_value = "storage")]
        disk: DiskName,
    },
    /// Put a failed disk back; programs have to open their files again
    RepairDisk {
        host: String,
        #[arg(long, default_value = "storage")]
        disk: DiskName,
        /// A new, empty disk in the failed one's place
        #[arg(long)]
        blank: bool,
    },
    /// Fill a host's disk
    FillDisk {
        host: String,
        #[arg(long, default_value = "storage")]
        disk: DiskName,
        /// Bytes to leave free
        #[arg(long, default_value_t = 0)]
        leave: u64,
        /// Take the filling away again
        #[arg(long, conflicts_with = "leave")]
        undo: bool,
    },
}

#[derive(Args)]
struct Up {
    #[arg(long, default_value_t = 2)]
    hosts: u8,
    #[arg(long, default_value_t = 1)]
    quorum_servers: u8,
    /// The QEMU that the hosts use
    #[arg(long, default_value = "/usr/bin/qemu-system-x86_64")]
    qemu: PathBuf,
    /// That QEMU's data folder, if it is not the one it was built with
    #[arg(long)]
    qemu_data_dir: Option<PathBuf>,
    /// Size of each host's storage disk in GiB; the image is sparse
    #[arg(long, default_value_t = 64)]
    storage_gib: u16,
    /// The folder with evd, ev, ev-am and ev-quorumd [default: the folder of ev-lab]
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Bare machines, without the product's daemons
    #[arg(long, conflicts_with = "bin_dir")]
    no_daemons: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum NetworkName {
    Management,
    Private1,
    Private2,
    Vm,
}

impl From<NetworkName> for Network {
    fn from(name: NetworkName) -> Self {
        match name {
            NetworkName::Management => Network::Management,
            NetworkName::Private1 => Network::Private1,
            NetworkName::Private2 => Network::Private2,
            NetworkName::Vm => Network::Vm,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum DiskName {
    /// Pool state, certificates, library
    System,
    /// The VMs' folders
    Storage,
}

impl From<DiskName> for DiskKind {
    fn from(name: DiskName) -> Self {
        match name {
            DiskName::System => DiskKind::System,
            DiskName::Storage => DiskKind::Storage,
        }
    }
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let name = LabName::new(&arguments.name)?;
    let dir = arguments.dir.unwrap_or_else(|| ev_lab::default_dir(&name));
    let dir = std::path::absolute(dir).context("could not find the current folder; give --dir with a full path")?;
    if let Action::Up(options) = arguments.action {
        return up(name, dir, options);
    }
    act(Lab::open(&dir)?, arguments.action)
}

fn up(name: LabName, dir: PathBuf, up: Up) -> Result<ExitCode> {
    let own = std::env::current_exe().context("could not find the folder of ev-lab; give --bin-dir")?;
    let beside = own.parent().map(PathBuf::from);
    let bin_dir = if up.no_daemons { None } else { up.bin_dir.or(beside) };
    let lab = Lab::up(LabOptions {
        dir,
        hosts: up.hosts,
        quorum_servers: up.quorum_servers,
        bin_dir,
        qemu: up.qemu,
        qemu_data_dir: up.qemu_data_dir,
        storage_bytes: u64::from(up.storage_gib) << 30,
        ..LabOptions::new(name)
    })?;
    print_status(&lab)
}

fn act(lab: Lab, action: Action) -> Result<ExitCode> {
    match action {
        Action::Up(_) | Action::Status => return print_status(&lab),
        Action::Down => lab.down()?,
        Action::Exec { machine, command } => return exec(&lab, &machine, &command),
        Action::Kill { machine, only: None } => lab.kill(&machine)?,
        Action::Kill { machine, only: Some(program) } => {
            let count = lab.kill_program(&machine, &program)?;
            println!("killed {count} process(es) of {program} on {machine}");
        }
        Action::Start { machine } => lab.start(&machine)?,
        Action::Freeze { machine } => lab.freeze(&machine)?,
        Action::Thaw { machine } => lab.thaw(&machine)?,
        Action::Cut { first, second, network, one_way } => {
            let way = if one_way { Direction::FirstToSecond } else { Direction::BothWays };
            lab.cut(&first, &second, network.map(Network::from), way)?;
        }
        Action::Heal => lab.heal()?,
        Action::Unplug { machine, network } => lab.unplug(&machine, network.into())?,
        Action::Plug { machine, network } => lab.plug(&machine, network.into())?,
        Action::Slow { machine, network, mbit } => {
            let rate = (mbit > 0).then(|| mbit.saturating_mul(1_000_000));
            lab.set_rate(&machine, network.into(), rate)?;
        }
        Action::FailDisk { host, disk } => lab.fail_disk(&host, disk.into())?,
        Action::RepairDisk { host, disk, blank } => {
            let kind = if blank { RepairKind::Blank } else { RepairKind::Same };
            lab.repair_disk(&host, disk.into(), kind)?;
        }
        Action::FillDisk { host, disk, undo: true, .. } => lab.unfill_disk(&host, disk.into())?,
        Action::FillDisk { host, disk, leave, undo: false } => lab.fill_disk(&host, disk.into(), leave)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the command to its end; its exit status becomes ours.
fn exec(lab: &Lab, machine: &str, command: &[String]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("there is no command to run; give one after --")?;
    let status = lab.command(machine, program)?.args(arguments).status();
    let status = status.with_context(|| format!("could not run {program} on {machine}; see that it is installed"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn print_status(lab: &Lab) -> Result<ExitCode> {
    println!("lab {} in {}", lab.plan().name, lab.plan().dir.display());
    for status in lab.status()? {
        print_machine(lab, &status);
    }
    for cut in lab.cuts()? {
        println!("  cut: {cut}");
    }
    Ok(ExitCode::SUCCESS)
}

fn print_machine(lab: &Lab, status: &NodeStatus) {
    let node = &status.node;
    let addresses: Vec<String> = node
        .networks()
        .iter()
        .filter_map(|network| node.address(*network).map(|address| format!("{network} {address}")))
        .collect();
    println!("  {:<8} {:<7} {}", node.name.to_string(), status.power, addresses.join(", "));
    for process in &status.processes {
        println!("           {:>7} {}", process.pid, process.program);
    }
    if !node.disks().is_empty() {
        println!("           log: {}", lab.plan().log_path(node).display());
    }
}
