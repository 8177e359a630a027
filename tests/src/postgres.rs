//! A client of the database in the Debian guest.

use std::time::Duration;

use ev_lab::Lab;
use postgres::{Client, Config, NoTls};

use crate::client::ClientError;
use crate::guests::DebianGuest;
use crate::load::Service;

/// A guest whose host dies says nothing any more; then the client has to try again.
const SILENCE_LIMIT: Duration = Duration::from_secs(1);
/// How long a client waits that must not notice anything.
const PATIENT_SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// One connection to the database.
pub struct Postgres {
    client: Client,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

impl Postgres {
    /// User, password and database of the guest's recipe, in `xtask/src/guests/debian.rs`.
    pub const USER: &'static str = "app";
    pub const PASSWORD: &'static str = "evenkeel";
    pub const DATABASE: &'static str = "app";

    /// Connects, and makes the table if it is not there. To be called in the client's network: see [`crate::in_client`].
    pub fn connect() -> Result<Self, ClientError> {
        Self::connect_with(SILENCE_LIMIT)
    }

    /// The same with a connection that is not given up soon: at Level 3 it goes on.
    pub fn connect_patiently() -> Result<Self, ClientError> {
        Self::connect_with(PATIENT_SILENCE_LIMIT)
    }

    fn connect_with(silence_limit: Duration) -> Result<Self, ClientError> {
        let mut client = Config::new()
            .host(DebianGuest::ADDRESS)
            .user(Self::USER)
            .password(Self::PASSWORD)
            .dbname(Self::DATABASE)
            .connect_timeout(SILENCE_LIMIT)
            .tcp_user_timeout(silence_limit)
            .keepalives_idle(silence_limit)
            .keepalives_interval(silence_limit)
            .keepalives_retries(2)
            .connect(NoTls)?;
        client.batch_execute(
            "CREATE TABLE IF NOT EXISTS row (number bigint PRIMARY KEY, at timestamptz DEFAULT now())",
        )?;
        Ok(Self { client })
    }

    /// Deletes a row as if it had been lost: to see that what counts rows can see that.
    pub fn delete(&mut self, number: i64) -> Result<(), ClientError> {
        self.client.execute("DELETE FROM row WHERE number = $1", &[&number])?;
        Ok(())
    }

    /// Has the database write what it only has in its log.
    pub fn checkpoint(&mut self) -> Result<(), ClientError> {
        Ok(self.client.batch_execute("CHECKPOINT")?)
    }

    /// `pg_amcheck` over the whole database, with the heap behind each index: what it complained about, if it did.
    pub fn check_integrity(lab: &Lab) -> Result<(), String> {
        let program = "/usr/lib/postgresql/15/bin/pg_amcheck";
        let mut command = lab.command("client", program).map_err(|error| error.to_string())?;
        command.args(["--host", DebianGuest::ADDRESS, "--username", Self::USER, "--heapallindexed", Self::DATABASE]);
        command.env("PGPASSWORD", Self::PASSWORD);
        let output = command.output().map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
    }
}

/// Number `n` is a row of its own, committed by itself.
impl Service for Postgres {
    fn write(&mut self, number: u64) -> Result<(), ClientError> {
        let number = i64::try_from(number).expect("no test writes that many rows");
        // Again after a lost answer: the row may be there already.
        self.client.execute("INSERT INTO row (number) VALUES ($1) ON CONFLICT DO NOTHING", &[&number])?;
        Ok(())
    }

    fn missing(&mut self, acknowledged: u64) -> Result<Vec<u64>, ClientError> {
        let limit = i64::try_from(acknowledged).expect("no test writes that many rows");
        let rows = self.client.query(
            "SELECT wanted FROM generate_series(0, $1::bigint - 1) AS wanted WHERE NOT EXISTS (SELECT FROM row WHERE number = wanted)",
            &[&limit],
        )?;
        Ok(rows.iter().map(|row| u64::try_from(row.get::<_, i64>(0)).expect("the series begins at 0")).collect())
    }
}
