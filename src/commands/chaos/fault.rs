//! What can be done to a city, and how long it may take to answer again.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// What a takeover may take beside the session timeout: fencing, reading, announcing.
const TAKEOVER: Duration = Duration::from_secs(3);
/// A pause nobody should notice.
const PAUSE: Duration = Duration::from_secs(1);
/// What a new leader of a partition, and everything that waited for it, may take.
const NEW_LEADER: Duration = Duration::from_secs(15);
/// After the only broker is back.
const BROKER_BACK: Duration = Duration::from_secs(30);

/// What can be done to a city.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// kill -9 of a node; another one is started when the city has healed.
    KillNode,
    /// SIGSTOP of a node for ten seconds, then SIGCONT: it finds its shards with others.
    FreezeNode,
    /// SIGTERM of a node, after which another one joins.
    ReplaceNode,
    /// Down to one node, up to three, back to two, then to as many as there were, by SIGTERM.
    OneThreeTwo,
    /// kill -9 of a gateway; another one is started.
    KillGateway,
    /// A node sees no broker for ten seconds, while gateways go on seeing the node (only with brokers started here).
    CutOffNode,
    /// SIGTERM of the broker (of one of the brokers), which is back at once.
    RestartBroker,
    /// kill -9 of the broker, which is back after ten seconds; with three brokers of one of them, which is back when the
    /// city has healed without it.
    KillBroker,
}

impl Fault {
    /// In the order of the table in the documentation.
    pub const ALL: [Fault; 8] = [
        Fault::KillNode,
        Fault::FreezeNode,
        Fault::ReplaceNode,
        Fault::OneThreeTwo,
        Fault::KillGateway,
        Fault::RestartBroker,
        Fault::KillBroker,
        Fault::CutOffNode,
    ];

    /// Can it only be done to brokers that were started here?
    pub fn needs_own_brokers(self) -> bool {
        matches!(
            self,
            Fault::CutOffNode | Fault::RestartBroker | Fault::KillBroker
        )
    }

    /// Does it take brokers away?
    pub fn is_of_brokers(self) -> bool {
        matches!(self, Fault::RestartBroker | Fault::KillBroker)
    }

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillNode => "kill-node",
            Fault::FreezeNode => "freeze-node",
            Fault::ReplaceNode => "replace-node",
            Fault::OneThreeTwo => "one-three-two",
            Fault::KillGateway => "kill-gateway",
            Fault::CutOffNode => "cut-off-node",
            Fault::RestartBroker => "restart-broker",
            Fault::KillBroker => "kill-broker",
        }
    }

    /// The longest any shard may be without a committed answer. `away`: how long the brokers were not enough to work
    /// with; the bound counts from their return.
    pub fn bound(self, session: Duration, brokers: usize, away: Duration) -> Duration {
        match self {
            Fault::KillNode | Fault::FreezeNode | Fault::CutOffNode => session + TAKEOVER,
            Fault::ReplaceNode | Fault::OneThreeTwo | Fault::KillGateway => PAUSE,
            Fault::RestartBroker | Fault::KillBroker if brokers >= 3 => NEW_LEADER,
            Fault::RestartBroker | Fault::KillBroker => away + BROKER_BACK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_node_s_shards_are_back_within_five_seconds_at_two_and_nine_at_six() {
        let bound = |session| {
            let session = Duration::from_secs(session);
            Fault::KillNode.bound(session, 1, Duration::ZERO).as_secs()
        };
        assert_eq!((bound(2), bound(6)), (5, 9));
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for fault in Fault::ALL {
            let value = fault.to_possible_value().expect("none is hidden");
            assert_eq!(value.get_name(), fault.name());
            assert_eq!(serde_json::to_value(fault).unwrap(), fault.name());
        }
    }
}
