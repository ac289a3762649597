//! What nodes say of themselves in the list of their group: `NAME@HOST:PORT+grows`, as their `client.id`.
//!
//! Nothing else names a node that owns no shard. `+grows`: it follows a city that gets more shards (PROTOCOL 30). Nodes of releases
//! before that leave it out, and those of releases before names do not say who they are: who does not say so, does not.

use std::collections::BTreeSet;

use crate::OwnerRecord;

/// Of a node that follows a city that gets more shards.
const GROWS: &str = "+grows";

/// A node as its group knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name, and where it answers gateways, if it says so.
    pub name: Option<(String, String)>,
    /// Where its connection to the brokers comes from.
    host: String,
    grows: bool,
}

/// A node's `client.id`.
pub(super) fn client_id(node: &str, address: &str) -> String {
    format!("{node}@{address}{GROWS}")
}

impl Member {
    /// Reads [`client_id`], or what an older release says there.
    pub fn read(client_id: &str, host: &str) -> Member {
        let (said, grows) = match client_id.strip_suffix(GROWS) {
            Some(said) => (said, true),
            None => (client_id, false),
        };
        let name = said.rsplit_once('@');
        Member {
            name: name.map(|(node, address)| (node.to_owned(), address.to_owned())),
            host: host.trim_start_matches('/').to_owned(),
            grows,
        }
    }
}

/// Those who do not say that they follow a city that grows, in words. Who does not say its name either is one of the `owners` that
/// nobody else is, or owns nothing.
pub(super) fn that_cannot_grow(members: &[Member], owners: &[OwnerRecord]) -> Vec<String> {
    let words = |node: &str, address: &str| format!("{node} at {address}");
    let named = members.iter().filter_map(|member| member.name.as_ref());
    let named: BTreeSet<&str> = named.map(|(node, _)| node.as_str()).collect();
    let unnamed: Vec<&Member> = members.iter().filter(|of| of.name.is_none()).collect();
    let silent = members.iter().filter(|member| !member.grows);
    let silent = silent.filter_map(|member| member.name.as_ref());
    let mut found: BTreeSet<String> = silent.map(|(node, address)| words(node, address)).collect();
    if unnamed.is_empty() {
        return found.into_iter().collect();
    }
    let owners = owners.iter();
    let owners = owners.filter(|owner| !named.contains(owner.node.as_str()));
    let owners: BTreeSet<String> = owners
        .map(|owner| words(&owner.node, &owner.address))
        .collect();
    let nameless = unnamed.len().saturating_sub(owners.len());
    found.extend(owners);
    let mut found: Vec<String> = found.into_iter().collect();
    if nameless > 0 {
        let hosts: BTreeSet<&str> = unnamed.iter().map(|member| member.host.as_str()).collect();
        let hosts: Vec<&str> = hosts.into_iter().collect();
        let hosts = hosts.join(", ");
        found.push(format!("{nameless} without name and shards, at {hosts}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(shard: u16, node: &str) -> OwnerRecord {
        OwnerRecord {
            shard,
            epoch: 1,
            node: node.into(),
            address: format!("{node}:7000"),
        }
    }

    #[test]
    fn a_node_says_its_name_its_address_and_that_it_follows() {
        let said = Member::read(&client_id("n@1", "10.0.0.1:7000"), "/10.0.0.1");
        assert_eq!(said.name, Some(("n@1".into(), "10.0.0.1:7000".into())));
        assert!(said.grows);
        assert_eq!(that_cannot_grow(&[said], &[owner(0, "gone")]), [""; 0]);
    }

    #[test]
    fn older_nodes_are_found_by_what_they_do_not_say() {
        let new = Member::read(&client_id("new", "new:7000"), "/10.0.0.1");
        let named = Member::read("named@named:7000", "/10.0.0.2");
        let unnamed = Member::read("sf.cabrank", "/10.0.0.3");
        assert_eq!(
            that_cannot_grow(&[new.clone(), named.clone()], &[owner(0, "gone")]),
            ["named at named:7000"]
        );
        let owners = [owner(0, "new"), owner(1, "old"), owner(2, "old")];
        assert_eq!(
            that_cannot_grow(&[unnamed.clone(), new.clone()], &owners),
            ["old at old:7000"]
        );
        assert_eq!(
            that_cannot_grow(&[unnamed.clone(), unnamed, named, new], &owners),
            [
                "named at named:7000",
                "old at old:7000",
                "1 without name and shards, at 10.0.0.3"
            ]
        );
    }
}
