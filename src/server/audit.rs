//! Paranoid mode: asks a server, after a client has given it back, whether anything of that client is left.
//!
//! Costs a round trip for each transaction, so it is for tests, and for whoever wants to see for a while.

use super::{ExchangeError, Server};
use std::collections::BTreeSet;

/// One row: everything that can outlive a transaction. The modes of one do not, although they are listed. `pg_temp` relations without rows in `pg_class` do not count.
const QUESTION: &str = "select \
    (select pg_catalog.string_agg(name, ',' order by name) from pg_catalog.pg_settings where source = 'session' \
    and name not in ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')), \
    pg_catalog.current_setting('role'), session_user::text, \
    (select pg_catalog.string_agg(name, ',' order by name) from pg_catalog.pg_prepared_statements), \
    (select pg_catalog.string_agg(name, ',') from pg_catalog.pg_cursors where is_holdable), \
    (select pg_catalog.string_agg(c, ',') from pg_catalog.pg_listening_channels() c), \
    (select pg_catalog.count(*) from pg_catalog.pg_locks where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid()), \
    (select pg_catalog.count(*) from pg_catalog.pg_class where relnamespace = pg_catalog.pg_my_temp_schema())";

impl Server {
    /// What of the last client is left; nothing if all is well. The server must be free.
    pub async fn audit(&mut self) -> Result<Vec<String>, ExchangeError> {
        let answer = self.simple(QUESTION).await?;
        // A simple query drops the unnamed statement.
        self.side.unnamed_was_dropped();
        let mut leaks = Vec::new();
        if let Some(error) = answer.error {
            leaks.push(format!("the question itself failed: {}", error.message));
            return Ok(leaks);
        }
        let Some([settings, role, user, prepared, cursors, channels, locks, temp]) =
            answer.rows.into_iter().next().and_then(|row| <[_; 8]>::try_from(row).ok())
        else {
            leaks.push("the question was not answered".into());
            return Ok(leaks);
        };
        let names = |list: Option<String>| -> BTreeSet<String> {
            list.iter().flat_map(|text| text.split(',')).map(str::to_ascii_lowercase).collect()
        };
        let known: BTreeSet<String> = self.side.settings().iter().map(|(name, _)| name.to_owned()).collect();
        for name in names(settings).difference(&known) {
            leaks.push(format!("setting {name}"));
        }
        let expected_role = self.side.settings().get("role").unwrap_or("none");
        if role.as_deref() != Some(expected_role) {
            leaks.push(format!("role {role:?} instead of {expected_role}"));
        }
        if let (Some(wanted), Some(user)) = (self.side.settings().get("session_authorization"), &user)
            && wanted != user
        {
            leaks.push(format!("session user {user} instead of {wanted}"));
        }
        let (held, expected) = (names(prepared), self.side.prepared_names());
        for name in held.symmetric_difference(&expected) {
            leaks.push(format!(
                "prepared statement {name}: on the server {}, known {}",
                held.contains(name),
                expected.contains(name)
            ));
        }
        leaks.extend(names(cursors).into_iter().map(|name| format!("cursor {name}")));
        leaks.extend(names(channels).into_iter().map(|name| format!("listening to {name}")));
        for (what, count) in [("advisory locks", locks), ("temporary objects", temp)] {
            if count.as_deref() != Some("0") {
                leaks.push(format!("{what}: {count:?}"));
            }
        }
        Ok(leaks)
    }
}
