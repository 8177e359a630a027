//! `vm-*`.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use ev_api::ErrorCode;
use ev_api::client::{Client, ClientError, escape};
use ev_api::library::{ImageState, ImageView, LibraryView};
use ev_api::vm::{BootSpec, DiskSpec, Done, NicSpec, VmCreate, VmView};
use uuid::Uuid;

use crate::args::{BootArgs, Format, Hardware, VmCreateArgs, VmImportArgs};
use crate::exit::Failure;
use crate::output::{self, or_dash, table, word};
use crate::progress;

/// Between two looks at a conversion.
const LOOK: Duration = Duration::from_millis(300);

pub async fn create(client: &Client, format: Format, arguments: VmCreateArgs) -> Result<(), Failure> {
    if arguments.disks.is_empty() && arguments.boot.iso.is_none() && arguments.boot.kernel.is_none() {
        return Err(Failure::usage("a VM needs something to boot from: give --disk with --iso, or --kernel"));
    }
    let boot = boot(client, format, &arguments.boot).await?;
    let disks = arguments.disks.iter().map(|size| DiskSpec { size_bytes: *size, image: None }).collect();
    finish(client, format, request(arguments.name, arguments.hardware, boot, disks)?).await
}

pub async fn import(client: &Client, format: Format, mut arguments: VmImportArgs) -> Result<(), Failure> {
    let home: ev_api::library::ImageHome = client
        .get(&format!("/v1/images/home?host={}", escape(arguments.hardware.host.as_deref().unwrap_or_default())))
        .await?;
    arguments.hardware.host = Some(home.host.clone());
    let mut disks = Vec::new();
    for image in &arguments.images {
        disks.push(upload_image(client, format, image, &home.host).await?);
    }
    disks.extend(arguments.disks.iter().map(|size| DiskSpec { size_bytes: *size, image: None }));
    finish(client, format, request(arguments.name, arguments.hardware, BootSpec::Disk, disks)?).await
}

async fn finish(client: &Client, format: Format, request: VmCreate) -> Result<(), Failure> {
    let vm: VmView = client.post("/v1/vms", &request).await?;
    output::show(format, &vm, |vm| format!("VM {} made on {}.", vm.name, vm.hosts.join(", ")))
}

fn request(name: String, hardware: Hardware, boot: BootSpec, disks: Vec<DiskSpec>) -> Result<VmCreate, Failure> {
    Ok(VmCreate {
        name,
        vcpus: hardware.vcpus,
        memory_mib: hardware.memory,
        uefi: hardware.uefi,
        boot,
        disks,
        nics: hardware.nics.iter().map(|text| nic(text)).collect::<Result<_, _>>()?,
        host: hardware.host,
        start_order: hardware.start_order,
        start: hardware.start,
    })
}

/// `NETWORK` or `NETWORK,mac=ADDRESS`.
fn nic(text: &str) -> Result<NicSpec, Failure> {
    let (network, rest) = text.split_once(',').map_or((text, None), |(network, rest)| (network, Some(rest)));
    let mac = match rest {
        None => None,
        Some(rest) => Some(
            rest.strip_prefix("mac=")
                .ok_or_else(|| Failure::usage(format!("--nic {text}: after the network only mac=ADDRESS may stand")))?
                .to_owned(),
        ),
    };
    Ok(NicSpec { network: network.to_owned(), mac })
}

async fn boot(client: &Client, format: Format, arguments: &BootArgs) -> Result<BootSpec, Failure> {
    if let Some(iso) = &arguments.iso {
        return Ok(BootSpec::Iso { iso: library_file(client, format, iso).await? });
    }
    let Some(kernel) = &arguments.kernel else { return Ok(BootSpec::Disk) };
    let initrd = match &arguments.initrd {
        Some(initrd) => Some(library_file(client, format, initrd).await?),
        None => None,
    };
    let kernel = library_file(client, format, kernel).await?;
    Ok(BootSpec::Kernel { kernel, initrd, command_line: arguments.append.clone() })
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::local(format!("cannot read {}: {error}", path.display()))
}

/// Uploads the file to the pool's library unless the pool has it already.
async fn library_file(client: &Client, format: Format, path: &Path) -> Result<LibraryView, Failure> {
    let hash = hash_file(path).map_err(|error| unreadable(path, &error))?;
    match client.get::<LibraryView>(&format!("/v1/library/{hash}")).await {
        Ok(file) => return Ok(file),
        Err(ClientError::Api(error)) if error.error == ErrorCode::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    upload(client, format, path, &format!("/v1/library/{hash}?name={}", escape(&name))).await
}

async fn upload<R: serde::de::DeserializeOwned>(
    client: &Client,
    format: Format,
    path: &Path,
    to: &str,
) -> Result<R, Failure> {
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        return Err(Failure::local(format!("{} is not a file", path.display())));
    }
    let bar = progress::bytes(format, metadata.len(), &format!("{}", path.file_name().unwrap_or_default().display()));
    let result = client
        .upload(to, metadata.len(), || {
            let bar = bar.clone();
            bar.reset();
            ev_api::upload::file_body(path, move |count| bar.inc(count))
        })
        .await;
    bar.finish_and_clear();
    Ok(result?)
}

fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Uploads a disk image to `host` and waits until it is converted there.
async fn upload_image(client: &Client, format: Format, path: &Path, host: &str) -> Result<DiskSpec, Failure> {
    let id = Uuid::new_v4();
    let place = format!("/v1/images/{id}?host={}", escape(host));
    let mut view: ImageView = upload(client, format, path, &place).await?;
    let bar = progress::bytes(format, 0, "converting");
    loop {
        match view.state {
            ImageState::Ready { size_bytes, .. } => {
                bar.finish_and_clear();
                return Ok(DiskSpec { size_bytes, image: Some(id) });
            }
            ImageState::Failed { error } => {
                bar.finish_and_clear();
                return Err(error.into());
            }
            ImageState::Uploading => {}
            ImageState::Converting { done_bytes, total_bytes } => {
                bar.set_length(total_bytes);
                bar.set_position(done_bytes);
            }
        }
        tokio::time::sleep(LOOK).await;
        view = client.get(&place).await?;
    }
}

pub async fn list(client: &Client, format: Format) -> Result<(), Failure> {
    let vms: Vec<VmView> = client.get("/v1/vms").await?;
    output::show(format, &vms, |vms| {
        table(
            ["VM", "LEVEL", "POWER", "HEALTH", "ACTIVE", "STANDBY", "VCPUS", "MEMORY", "UUID"],
            vms.iter().map(|vm| {
                [
                    vm.name.clone(),
                    vm.level.to_string(),
                    word(&vm.power),
                    word(&vm.health),
                    or_dash(vm.active.as_deref()),
                    or_dash(vm.standby.as_deref()),
                    vm.vcpus.to_string(),
                    format!("{} MiB", vm.memory_mib),
                    vm.uuid.to_string(),
                ]
            }),
        )
    })
}

pub async fn delete(client: &Client, vm: &str, yes: bool) -> Result<(), Failure> {
    if !yes && !confirmed(vm)? {
        return Err(Failure::local("nothing was deleted"));
    }
    let done: Done = client.delete(&format!("/v1/vms/{}", escape(vm))).await?;
    super::host::print_notes(&done);
    Ok(())
}

fn confirmed(vm: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("deleting {vm} deletes its disks: say --yes")));
    }
    eprint!("Delete {vm} and its disks on all hosts? Type its name: ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::local(format!("cannot read the answer: {error}")))?;
    Ok(answer.trim() == vm)
}
