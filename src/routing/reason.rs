//! Why a request went where it went: one name for each reason, in the console, in metrics and in logs.

use super::WhyPrimary;
use crate::sql::reads::Why;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// To a replica.
    Replica,
    /// To the primary.
    Primary,
    /// Nowhere: the client gets an error.
    Nowhere,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)+) => {
        /// Why a request went where it went.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name,)+ }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// To a replica: it only reads.
    Read = "read";
    /// To where the client is: it keeps its server, or is in the middle of something there. Not counted.
    Kept = "server kept";
    /// To a replica: its transaction is READ ONLY.
    ReadOnlyTransaction = "read-only transaction";
    /// A comment in front of the statement says so.
    Comment = "hint in a comment";
    /// `ambassador.route` says so.
    Setting = "ambassador.route";
    /// It is said of the user.
    User = "user";
    /// It is said of the listener that the client came in by.
    Listener = "listener";
    /// It is said of the database, or of all.
    Configured = "configuration";
    /// A transaction that may write.
    Transaction = "transaction";
    /// Its transactions are SERIALIZABLE, which no replica grants.
    Serializable = "serializable";
    /// What the functions of the database do is not known yet.
    NotKnownYet = "functions not known yet";
    /// It does what no text shows, or more than is looked at.
    Opaque = "not understood";
    /// A text that is too long, or nested too deep.
    TooLong = "too long";
    /// A command that is none of those that read.
    Command = "command";
    /// It changes a setting.
    SessionSetting = "setting";
    /// It concerns what only its own session has.
    Session = "session state";
    /// A locking clause.
    Locking = "locking clause";
    /// It writes within a query: SELECT INTO, or a data-modifying WITH.
    Modifies = "data-modifying query";
    /// COPY other than TO STDOUT.
    Copy = "copy";
    /// It asks whether its server is the primary.
    Role = "asks for the role";
    /// A function that may do more than read.
    Function = "function that may write";
    /// A function that nobody knows.
    UnknownFunction = "unknown function";
    /// A view, table or type behind which more than a read may hide.
    Object = "object that may write";
    /// An operator that may do more than read.
    Operator = "operator that may write";
    /// A parameter of a type of the database's own.
    ParameterType = "parameter type";
    /// The client's encoding hides what the text is.
    Encoding = "client encoding";
    /// A replica has refused the same before.
    Learned = "learned";
    /// A replica has just refused it.
    Refused = "refused by a replica";
    /// A replica was lost while it served it.
    Lost = "replica lost";
    /// No replica's connection was to be had.
    NoConnection = "no connection to a replica";
    /// The connection is newer than the proof that its server has what the session needs.
    NewConnection = "connection too new";
    /// There is no replica.
    NoReplica = "no replica";
    /// Somebody has taken all replicas out of service.
    NoWeight = "every replica has weight 0";
    /// None is in good health.
    NoneUp = "no replica is up";
    /// All that are up are further behind than `max_lag`.
    AllLag = "every replica lags";
    /// The session has written, and its `consistency` is `primary`.
    HasWritten = "session has written";
    /// None has all that the session needs.
    NoneFresh = "no replica is fresh enough";
    /// All are busy.
    AllBusy = "every replica is busy";
}

impl From<Why> for Reason {
    fn from(why: Why) -> Self {
        match why {
            Why::TooLong | Why::TooDeep => Self::TooLong,
            Why::Unclear => Self::Opaque,
            Why::Command(_) => Self::Command,
            Why::Transaction => Self::Transaction,
            Why::Setting => Self::SessionSetting,
            Why::Session => Self::Session,
            Why::Locking => Self::Locking,
            Why::Into | Why::Modifies => Self::Modifies,
            Why::Copy => Self::Copy,
            Why::Role => Self::Role,
            Why::Function(_) => Self::Function,
            Why::UnknownFunction(_) => Self::UnknownFunction,
            Why::Object(_) => Self::Object,
            Why::Operator(_) => Self::Operator,
        }
    }
}

impl From<WhyPrimary> for Reason {
    fn from(why: WhyPrimary) -> Self {
        match why {
            WhyPrimary::NoReplica => Self::NoReplica,
            WhyPrimary::NoWeight => Self::NoWeight,
            WhyPrimary::NoneUp => Self::NoneUp,
            WhyPrimary::AllLag => Self::AllLag,
            WhyPrimary::NoneFresh => Self::NoneFresh,
            WhyPrimary::AllBusy => Self::AllBusy,
        }
    }
}

impl Reason {
    /// Whether a hint may overrule it: what cannot be proven to read, and may yet do so. What surely writes, or concerns the
    /// session, goes to the primary whatever a hint says.
    pub const fn is_doubt(self) -> bool {
        matches!(
            self,
            Self::Opaque
                | Self::TooLong
                | Self::Role
                | Self::Function
                | Self::UnknownFunction
                | Self::Object
                | Self::Operator
                | Self::ParameterType
                | Self::Encoding
                | Self::NotKnownYet
                | Self::Learned
        )
    }

    /// Whether what has this reason may write nothing all the same: see [`crate::sql::reads::writes_nothing`].
    pub const fn may_write_nothing(self) -> bool {
        matches!(
            self,
            Self::SessionSetting | Self::Session | Self::Transaction | Self::Role | Self::Function | Self::NotKnownYet
        )
    }

    /// Whether it is a read that, for this reason, goes to the primary nevertheless.
    pub const fn is_of_a_read(self) -> bool {
        matches!(self, Self::Refused | Self::Lost | Self::NoConnection | Self::NewConnection | Self::Learned)
    }

    /// The reason of this number, if there is one.
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl Destination {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replica => "replica",
            Self::Primary => "primary",
            Self::Nowhere => "nowhere",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_its_number_and_has_a_name_of_its_own() {
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
            assert_eq!(Reason::of(u8::try_from(at).unwrap()), Some(*reason));
        }
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
