//! The command line as clap reads it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Keeps virtual machines running when a disk, a network path or a whole host fails.
#[derive(Debug, Parser)]
#[command(name = "ev", version, after_help = crate::exit::HELP, arg_required_else_help = true)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Under which heading `--help` shows the options of every command.
const EVERYWHERE: &str = "Options of every command";

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Print tables for people or JSON for programs
    #[arg(long, global = true, help_heading = EVERYWHERE, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// API address of any host of the pool, instead of the local evd
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "ADDRESS[:PORT]", env = "EV_POOL")]
    pub pool: Option<String>,
    /// Administrator's token, with --pool
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "TOKEN", env = "EV_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Socket of the local evd
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "PATH", env = "EV_SOCKET", default_value = "/run/evenkeel/evd.sock")]
    pub socket: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a pool with this host as its first member
    #[command(
        after_help = "Example:\n  ev pool-create office\n\nPrints the administrator's token once. Run on the first host."
    )]
    PoolCreate {
        /// Name of the pool
        name: String,
    },
    /// Show the pool: members, master, what it survives, alerts
    PoolShow,
    /// Show the pool's settings, or change those that are given
    #[command(after_help = "Example:\n  ev pool-set --copy-rate 100M --scrub-interval 14d")]
    PoolSet {
        /// Most bytes per second that a copy of a disk, or of a guest's memory, moves (K, M, G); 0 for no limit
        #[arg(long, value_name = "BYTES", value_parser = rate)]
        copy_rate: Option<u64>,
        /// Compare both replicas of each disk in the background this often (s, m, h, d); 0 for never
        #[arg(long, value_name = "TIME", value_parser = interval)]
        scrub_interval: Option<u64>,
        /// So many VMs of a host send their memory to their standbys at the same time; others are queued
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
        sync_at_once: Option<u32>,
        /// A guest at level 3 is not to stand still for longer than about this at a time, for a
        /// synchronisation or a checkpoint
        #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(20..=1000))]
        blackout: Option<u64>,
    },
    /// Remember a pool on this machine, for use without a local evd
    #[command(after_help = "Example:\n  ev login 10.0.0.1 --token EKA1-…")]
    Login {
        /// API address of any host of the pool
        #[arg(value_name = "ADDRESS[:PORT]")]
        address: String,
    },
    /// Make a further administrator's token
    #[command(after_help = "Example:\n  ev token-create --name \"backup script\"")]
    TokenCreate {
        /// Whose it is or what it is for, for `ev token-list`
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        name: String,
    },
    /// List the administrators' tokens that count
    TokenList,
    /// Refuse an administrator's token from now on
    #[command(after_help = "Example:\n  ev token-list\n  ev token-revoke 5f0c2ab91d3e\n\n\
                            Root on any host of the pool needs no token and can make another one.")]
    TokenRevoke {
        /// As `ev token-list` shows it
        id: String,
    },

    /// Make a one-time token with which a host can join
    #[command(
        after_help = "Example:\n  ev host-token             (on a host of the pool)\n  ev host-join EKT1-…      (on the new host)"
    )]
    HostToken {
        /// Minutes until the token expires
        #[arg(long, default_value_t = 60, value_name = "MINUTES")]
        valid: u32,
    },
    /// Make this host a member of the pool that issued the token
    HostJoin {
        /// From `ev host-token`
        token: String,
    },
    /// Remove a host that holds no VMs from the pool
    HostRemove {
        host: String,
        /// Remove it although it is dead; its data stays on it
        #[arg(long)]
        force: bool,
    },
    /// List the hosts with their state and paths
    HostList,

    /// Take a quorum server into the pool, online
    #[command(
        after_help = "Example:\n  ev-quorumd invite                 (on the quorum server; prints an invitation)\n  ev quorum-add third INVITATION    (on a host of the pool)"
    )]
    QuorumAdd {
        /// What to call it
        name: String,
        /// The line that `ev-quorumd invite` printed on the quorum server
        invitation: String,
    },
    /// Remove a quorum server from the pool, online
    QuorumRemove { name: String },

    /// List the pool's networks
    NetworkList,
    /// Add a network for VMs; each host's evd.toml says which interface carries it
    NetworkAdd {
        name: String,
        /// Name of the Linux bridge on every host
        #[arg(long)]
        bridge: Option<String>,
    },
    /// List the library: ISO images, kernels, initial RAM disks
    LibraryList,

    /// Make a VM
    VmCreate(VmCreateArgs),
    /// Make a VM from a disk image (raw or qcow2)
    VmImport(VmImportArgs),
    /// List all VMs
    VmList,
    /// Delete a VM with its disks; it must be off
    VmDelete {
        vm: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },

    /// Protect a VM at a level, or change its level, while it runs
    #[command(after_help = "Example:\n  ev pvm-protect web01 --level 2 --wait")]
    PvmProtect {
        vm: String,
        /// 1: restarted when its host dies. 2: disks and network exist on two hosts. 3: memory and processors too, so that
        /// the guest goes on when its host dies
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=3))]
        level: u8,
        /// The second host; chosen by the pool if not given
        #[arg(long)]
        host: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take the protection off a VM, while it runs
    PvmUnprotect {
        vm: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Say at which levels a VM can be protected, and why not
    PvmCandidacy {
        vm: String,
        /// Only this level
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=3))]
        level: Option<u8>,
    },
    /// Start VMs
    PvmStart(PowerArgs),
    /// Ask guests to power down
    PvmShutdown(PowerArgs),
    /// End guests at once, as if the power were cut
    PvmForceOff(PowerArgs),
    /// Restart guests
    PvmReboot {
        #[command(flatten)]
        power: PowerArgs,
        /// End the guest at once instead of asking it to power down
        #[arg(long)]
        force: bool,
    },
    /// Go back to an older state of a VM's disks, when the host with the newest one is lost for good
    #[command(after_help = "Example:
  ev pvm-revert db01 --host beta --give-up-newer-writes

While a replica is copied to, what it held before is kept until the copy has ended.
If the other host is lost in the middle, this brings that older state back. The VM must
be off (ev pvm-force-off). If the other host comes back later after all, it is brought in
step with the older state.")]
    PvmRevert {
        vm: String,
        /// The host whose older state is to count
        #[arg(long)]
        host: String,
        /// All that the guest has written since that state is lost
        #[arg(long)]
        give_up_newer_writes: bool,
    },
    /// Let a guest at level 3 go on on its other host, while it runs
    #[command(after_help = "Example:
  ev pvm-switch db01 --wait

The guest goes on from its last checkpoint, as if its host had died: its clients keep
their connections. The host that it leaves becomes the standby by itself.")]
    PvmSwitch {
        vm: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show one VM
    PvmShow { vm: String },
    /// Show what level 3 costs a guest: checkpoints, pauses, latency, what is sent
    PvmStats {
        vm: String,
        /// Go on until interrupted, a line each time
        #[arg(long)]
        follow: bool,
        /// Seconds between two lines
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600), requires = "follow")]
        interval: u64,
    },
    /// Show or wait for the synchronisation of a VM's disks
    PvmSync {
        vm: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Connect this terminal to the guest's serial line; leave with Ctrl-]
    PvmConsole { vm: String },

    /// Show disks and their replicas
    DiskShow {
        /// Only this VM's
        vm: Option<String>,
    },
    /// Compare both replicas of a VM's disks block by block
    DiskVerify {
        vm: String,
        /// Repair differences from the good side
        #[arg(long)]
        repair: bool,
        #[command(flatten)]
        wait: Wait,
    },

    /// List what happened
    EventList {
        /// Only events after this number
        #[arg(long, value_name = "NUMBER")]
        since: Option<u64>,
        /// Go on, printing events as they happen
        #[arg(long)]
        follow: bool,
    },
    /// List what is wrong now
    AlertList,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  ev completion bash > /etc/bash_completion.d/ev")]
    Completion { shell: clap_complete::Shell },
    /// Write the man pages of all commands into a folder
    #[command(after_help = "Example:\n  ev man-pages /usr/local/share/man/man1 && man ev-pvm-protect")]
    ManPages { folder: PathBuf },
}

/// Waiting for the end.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Wait until it is done, showing progress
    #[arg(long)]
    pub wait: bool,
    /// Give up waiting after this many seconds (exit code 5)
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub timeout: u64,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["vms", "all"])]
pub struct PowerArgs {
    /// The VMs
    pub vms: Vec<String>,
    /// All VMs of the pool
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ev vm-create web01 --memory 2048 --vcpus 2 --disk 20G --iso debian-12.iso --nic vm
  ev vm-create tiny --disk 1G --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'")]
pub struct VmCreateArgs {
    /// Name of the VM
    pub name: String,
    /// A new disk of this size (K, M, G, T; binary), repeatable
    #[arg(long = "disk", value_name = "SIZE", value_parser = size)]
    pub disks: Vec<u64>,
    #[command(flatten)]
    pub boot: BootArgs,
    #[command(flatten)]
    pub hardware: Hardware,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  ev vm-import db01 debian.qcow2 --memory 2048 --nic vm --start")]
pub struct VmImportArgs {
    /// Name of the VM
    pub name: String,
    /// Disk images, the one to boot from first
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// A further empty disk of this size, repeatable
    #[arg(long = "disk", value_name = "SIZE", value_parser = size)]
    pub disks: Vec<u64>,
    #[command(flatten)]
    pub hardware: Hardware,
}

#[derive(Debug, Args)]
pub struct BootArgs {
    /// Boot from this CD-ROM image first
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    pub iso: Option<PathBuf>,
    /// Boot this Linux kernel directly
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Its command line
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    pub append: String,
}

#[derive(Debug, Args)]
pub struct Hardware {
    /// Memory in MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub memory: u32,
    /// Virtual processors
    #[arg(long, default_value_t = 1)]
    pub vcpus: u16,
    /// A NIC on this pool network, repeatable
    #[arg(long = "nic", value_name = "NETWORK[,mac=ADDRESS]")]
    pub nics: Vec<String>,
    /// UEFI firmware instead of BIOS
    #[arg(long)]
    pub uefi: bool,
    /// The host that runs it first
    #[arg(long)]
    pub host: Option<String>,
    /// VMs with a lower number start earlier
    #[arg(long, default_value_t = 100, value_name = "NUMBER")]
    pub start_order: u32,
    /// Start it at once
    #[arg(long)]
    pub start: bool,
}

/// A time such as `12h`, in seconds.
fn interval(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a time: give a number with s, m, h or d, such as 7d, or 0");
    if text == "0" {
        return Ok(0);
    }
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let seconds = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).ok_or_else(wrong)
}

/// Like [`size`], but it may be 0.
fn rate(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { size(text) }
}

/// A size such as `20G`: a number of bytes, or with K, M, G or T of KiB, MiB, GiB or TiB.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: give a number with K, M, G or T, such as 20G");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let factor_bits = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << factor_bits).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// `ADDRESS` or `ADDRESS:PORT`.
pub fn api_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| text.parse().ok().map(|ip| SocketAddr::new(ip, crate::connect::API_PORT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("20G"), Ok(20 << 30));
        assert_eq!(size("1mib"), Ok(1 << 20));
        for bad in ["", "G", "0", "1X", "-1G", "99999999999T", "1.5G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn intervals() {
        assert_eq!(interval("0"), Ok(0));
        assert_eq!(interval("90s"), Ok(90));
        assert_eq!(interval("7d"), Ok(604_800));
        for bad in ["", "d", "7", "-1h", "1w", "1.5h"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(api_address("10.0.0.1").unwrap().to_string(), "10.0.0.1:7411");
        assert_eq!(api_address("10.0.0.1:80").unwrap().to_string(), "10.0.0.1:80");
        assert_eq!(api_address("nowhere"), None);
    }
}
