//! The question to a node, and its answer.

use crate::routing::Lsn;
use crate::routing::survey::Answer;
use crate::server::{Exchange, ExchangeError, Server};
use crate::wire::SqlState;
use std::sync::Arc;
use std::time::Duration;

/// What does not change while a connection lasts. The search path has the system's own names only.
const HELLO: &str = "select pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_block_size')), \
     pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')), \
     (select count(*) from pg_catalog.pg_proc where proname = 'aurora_replica_status'), \
     pg_catalog.current_setting('server_version_num')";
/// From this version on a replica can be told to answer when it has replayed a position.
const WAITS: u32 = 190_000;

/// The cluster's identifier. Not every role may ask for it.
const SYSTEM: &str = "select system_identifier from pg_catalog.pg_control_system()";

/// Whether it is in recovery is asked once, or a promotion could come in between. `pg_walfile_name` begins with the timeline
/// that is written; the control file would tell it only after the next checkpoint. A replica's is the highest of what
/// can be seen: what it receives, and what recovery and checkpoints have got to.
const FULL: &str = "select r, \
     case when not r then pg_catalog.pg_current_wal_insert_lsn() end, \
     case when not r then pg_catalog.pg_current_wal_flush_lsn() end, \
     case when not r then pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8) end, \
     case when r then pg_catalog.pg_last_wal_replay_lsn() end, \
     case when r then pg_catalog.pg_last_wal_receive_lsn() end, \
     case when r then (extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()) \
       * 1000)::pg_catalog.int8 end, \
     case when r then pg_catalog.pg_is_wal_replay_paused() end, \
     case when r then greatest((select received_tli from pg_catalog.pg_stat_wal_receiver), \
       (select timeline_id from pg_catalog.pg_control_checkpoint()), \
       (select min_recovery_end_timeline from pg_catalog.pg_control_recovery())) end \
     from (select pg_catalog.pg_is_in_recovery() as r offset 0) as s";

/// The same without what a role may be forbidden to see: then a replica's timeline is not known.
const LEAN: &str = "select r, \
     case when not r then pg_catalog.pg_current_wal_insert_lsn() end, \
     case when not r then pg_catalog.pg_current_wal_flush_lsn() end, \
     case when not r then pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8) end, \
     case when r then pg_catalog.pg_last_wal_replay_lsn() end, \
     case when r then pg_catalog.pg_last_wal_receive_lsn() end, \
     null, null, \
     case when r then (select received_tli from pg_catalog.pg_stat_wal_receiver) end \
     from (select pg_catalog.pg_is_in_recovery() as r offset 0) as s";

/// Aurora's nodes share their storage: each knows its own lag, which is as old as its last report.
const SHARED: &str = "select pg_catalog.pg_is_in_recovery(), \
     (select (coalesce(replica_lag_in_msec, 0) + greatest(0, \
       extract(epoch from pg_catalog.clock_timestamp() - last_update_timestamp) * 1000))::pg_catalog.int8 \
     from pg_catalog.aurora_replica_status() \
     where server_id = pg_catalog.aurora_db_instance_identifier() limit 1)";

/// A connection over which a node is asked.
#[derive(Debug)]
pub(super) struct Link {
    server: Box<Server>,
    kind: Kind,
    page: u64,
    segment: u64,
    system: Option<u64>,
    /// It can be told to answer when it has replayed a position.
    waits: bool,
    /// Whether it was ever answered.
    pub(super) proven: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    Lean,
    Shared,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error(transparent)]
    Broken(#[from] ExchangeError),
    #[error("{0}")]
    Odd(Arc<str>),
}

/// The statement that waits for a position (PostgreSQL 19). Without an error when the time is over, or after a promotion.
fn wait_for(position: Lsn, limit: Duration) -> String {
    let ms = limit.as_millis().max(1);
    format!("WAIT FOR LSN '{position}' WITH (MODE 'standby_replay', TIMEOUT '{ms}ms', NO_THROW)")
}

type Row = Vec<Option<String>>;

fn row(answer: Exchange) -> Result<Row, NoAnswer> {
    match answer.error {
        Some(report) => Err(NoAnswer::Odd(format!("{}: {}", report.code, report.message).into())),
        None => answer.rows.into_iter().next().ok_or_else(|| NoAnswer::Odd("no row".into())),
    }
}

fn cell<T: std::str::FromStr>(row: &Row, at: usize) -> Option<T> {
    row.get(at)?.as_deref()?.parse().ok()
}

fn flag(row: &Row, at: usize) -> Option<bool> {
    row.get(at)?.as_deref().map(|text| text == "t")
}

fn millis(row: &Row, at: usize) -> Option<Duration> {
    let ms: i64 = cell(row, at)?;
    // Clocks differ: what seems to come from the future is of now.
    Some(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

impl Link {
    /// Gets to know the node at the other end.
    pub(super) async fn new(mut server: Box<Server>) -> Result<Self, NoAnswer> {
        let hello = row(server.simple(HELLO).await?)?;
        let system = server.simple(SYSTEM).await?;
        let kind = if cell::<u32>(&hello, 2).is_some_and(|count| count > 0) { Kind::Shared } else { Kind::Full };
        Ok(Self {
            kind,
            page: cell(&hello, 0).unwrap_or(0),
            segment: cell(&hello, 1).unwrap_or(0),
            system: system.rows.first().and_then(|row| cell(row, 0)),
            waits: kind == Kind::Full && cell::<u32>(&hello, 3).is_some_and(|version| version >= WAITS),
            server,
            proven: false,
        })
    }

    /// Asks the node.
    pub(super) async fn ask(&mut self) -> Result<Answer, NoAnswer> {
        match self.kind {
            Kind::Full => {
                let answer = self.server.simple(FULL).await?;
                if answer.error.as_ref().is_some_and(|error| error.code == SqlState::INSUFFICIENT_PRIVILEGE) {
                    self.kind = Kind::Lean;
                    let answer = self.server.simple(LEAN).await?;
                    return self.read(&row(answer)?);
                }
                self.read(&row(answer)?)
            }
            Kind::Lean => {
                let answer = self.server.simple(LEAN).await?;
                self.read(&row(answer)?)
            }
            Kind::Shared => {
                let row = row(self.server.simple(SHARED).await?)?;
                let in_recovery = flag(&row, 0).ok_or_else(|| NoAnswer::Odd("no role".into()))?;
                let lag = millis(&row, 1);
                Ok(Answer {
                    in_recovery,
                    shared_lag: lag.or(Some(Duration::MAX)),
                    system: self.system,
                    ..Answer::default()
                })
            }
        }
    }

    /// Waits until the node has replayed a position, but not for longer than `limit`; not at all where it cannot be told to.
    /// What comes of it proves nothing: only the answer to a probe after it does.
    ///
    /// # Errors
    /// The connection broke. That the node does not understand, or refuses, is none: it is not told to again.
    pub(super) async fn wait_for(&mut self, position: Lsn, limit: Duration) -> Result<(), NoAnswer> {
        if self.waits && !limit.is_zero() {
            let answer = self.server.simple(&wait_for(position, limit)).await?;
            self.waits = answer.error.is_none();
        }
        Ok(())
    }

    fn read(&self, row: &Row) -> Result<Answer, NoAnswer> {
        let in_recovery = flag(row, 0).ok_or_else(|| NoAnswer::Odd("no role".into()))?;
        let written = row.get(3).and_then(|text| u32::from_str_radix(text.as_deref()?, 16).ok());
        Ok(Answer {
            in_recovery,
            insert: cell::<Lsn>(row, 1).map(|lsn| lsn.reachable(self.page, self.segment)),
            flush: cell(row, 2),
            replayed: cell(row, 4),
            received: cell(row, 5),
            replay_age: millis(row, 6),
            paused: flag(row, 7).unwrap_or(false),
            timeline: written.or_else(|| cell(row, 8)).unwrap_or(0),
            system: self.system,
            shared_lag: None,
        })
    }

    /// Says goodbye.
    pub(super) fn close(self) {
        self.server.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_names_its_position_and_its_limit() {
        let text = "WAIT FOR LSN '1/16B3748' WITH (MODE 'standby_replay', TIMEOUT '20ms', NO_THROW)";
        assert_eq!(wait_for("1/16B3748".parse().unwrap(), Duration::from_millis(20)), text);
        // 0 is no limit at all.
        assert!(wait_for(Lsn::new(1), Duration::from_micros(1)).contains("TIMEOUT '1ms'"));
    }
}
