//! What there is to say of a text, for people who ask: where it may run, why, and what in it has decided that.

use super::verdict::{self, Wish};
use super::{Destination, Leaning, Reason, Verdict};
use crate::sql::access;
use crate::sql::reads::{Objects, Run, Transaction, Why};

/// What there is to say of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explained<'a> {
    /// Where it may run.
    pub verdict: Verdict,
    /// What in it has decided that, as it is written: the name of a function or of another object, or a command.
    pub culprit: Option<&'a [u8]>,
    /// What it does to the transaction, if that is what its only statement is for.
    pub transaction: Option<Transaction>,
    /// What a comment in front of it asks for.
    pub hint: Wish,
}

/// Looks at a text.
pub fn explain<'a, O: Objects + ?Sized>(text: &'a [u8], standard_strings: bool, objects: &O) -> Explained<'a> {
    let access = access(text, standard_strings, objects);
    let (verdict, span) = match access.run {
        Run::Read => (Verdict::Read, None),
        Run::Cursor => (Verdict::Cursor, None),
        Run::Write(why) => {
            let span = match why {
                Why::Command(span)
                | Why::Function(span)
                | Why::UnknownFunction(span)
                | Why::Object(span)
                | Why::Operator(span) => Some(span),
                Why::TooLong
                | Why::TooDeep
                | Why::Unclear
                | Why::Transaction
                | Why::Setting
                | Why::Session
                | Why::Locking
                | Why::Into
                | Why::Modifies
                | Why::Copy
                | Why::Role => None,
            };
            (Verdict::Write(why.into()), span)
        }
    };
    Explained {
        verdict,
        culprit: span.map(|span| span.of(text)),
        transaction: access.transaction.filter(|_| access.statements == 1),
        hint: verdict::hint(text),
    }
}

impl Explained<'_> {
    /// The same where nothing is known of the database yet.
    #[must_use]
    pub fn unknown(self) -> Self {
        Self { verdict: Verdict::Write(Reason::NotKnownYet), culprit: None, ..self }
    }

    /// What it is, in a word.
    pub const fn kind(&self) -> &'static str {
        match (self.transaction, self.verdict) {
            (Some(_), _) => "transaction",
            (None, verdict) => verdict.as_str(),
        }
    }

    /// Where it goes outside a transaction, as long as some replica is fit, in a session that has set nothing, of whose reads
    /// `leaning` is said. `learned`: a replica has refused the same before.
    pub fn destination(&self, leaning: Leaning, learned: bool) -> (Destination, Reason) {
        let leaning = leaning.unless(self.hint);
        if let Some(Transaction::Begin(modes)) = self.transaction
            && modes.allow_replica(false, false)
        {
            // It is held back until the first statement.
            return match leaning.route {
                Wish::Primary => (Destination::Primary, leaning.by),
                Wish::Auto | Wish::Replica => (Destination::Replica, Reason::ReadOnlyTransaction),
            };
        }
        self.verdict.destination(leaning, false, learned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::Catalogue;

    #[test]
    fn a_text_is_explained_by_where_it_goes_why_and_what_has_decided_it() {
        let catalogue = Catalogue::from_rows([
            ("function", "public", "area", false),
            ("function", "public", "log_it", true),
            ("object", "public", "log_view", true),
            ("operator", "public", "@@@", true),
        ]);
        use Destination::{Primary, Replica};
        for (text, kind, destination, reason, culprit) in [
            ("select area(1)", "read", Replica, Reason::Read, None),
            ("select area(1), Log_It(2)", "write", Primary, Reason::Function, Some("Log_It")),
            ("select nobody(2)", "write", Primary, Reason::UnknownFunction, Some("nobody")),
            ("select nextval('s')", "write", Primary, Reason::Function, Some("nextval")),
            ("select * from log_view", "write", Primary, Reason::Object, Some("log_view")),
            ("select 1 @@@ 2", "write", Primary, Reason::Operator, Some("@@@")),
            ("select 1; insert into t values (1)", "write", Primary, Reason::Command, Some("insert")),
            ("select * from t for update", "write", Primary, Reason::Locking, None),
            ("fetch 1 from c", "cursor", Primary, Reason::Session, None),
            ("begin", "transaction", Primary, Reason::Transaction, None),
            ("begin read only", "transaction", Replica, Reason::ReadOnlyTransaction, None),
            ("begin read only, isolation level serializable", "transaction", Primary, Reason::Transaction, None),
            ("/* ambassador: primary */ select 1", "read", Primary, Reason::Comment, None),
            ("/* ambassador: replica */ select log_it(1)", "write", Replica, Reason::Comment, Some("log_it")),
            ("/* ambassador: replica */ delete from t", "write", Primary, Reason::Command, Some("delete")),
        ] {
            let explained = explain(text.as_bytes(), true, &catalogue);
            let culprit_is = explained.culprit.map(|culprit| std::str::from_utf8(culprit).unwrap());
            assert_eq!((explained.kind(), culprit_is), (kind, culprit), "{text}");
            assert_eq!(explained.destination(Leaning::NONE, false), (destination, reason), "{text}");
        }
        let read = explain(b"select 1", true, &catalogue);
        assert_eq!(read.destination(Leaning::NONE, true), (Primary, Reason::Learned));
        assert_eq!(read.unknown().destination(Leaning::NONE, false), (Primary, Reason::NotKnownYet));
        let primary = Leaning { route: Wish::Primary, by: Reason::User };
        assert_eq!(read.destination(primary, false), (Primary, Reason::User));
        let hinted = explain(b"/* ambassador: replica */ select 1", true, &catalogue);
        assert_eq!(hinted.destination(primary, false), (Replica, Reason::Comment));
    }
}
