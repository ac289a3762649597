//! Which node owns a shard, as far as this gateway knows.
//!
//! Holds: what an older epoch says about a shard never replaces what a newer one said (PROTOCOL 22). One link for each
//! address, however many shards it has; a link nobody routes to is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use cabrank_eventlog::OwnerRecord;
use cabrank_ring::SHARDS_MAX;
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::rpc::{LinkConfig, NodeLink};
use crate::tls::ClusterTls;

/// The way to a shard's owner.
#[derive(Clone)]
pub(crate) struct Route {
    pub epoch: u64,
    pub node: String,
    /// `None`: its address is empty or makes no sense.
    pub link: Option<Arc<NodeLink>>,
}

/// The routing table.
pub(crate) struct Routes {
    by_shard: RwLock<Vec<Option<Route>>>,
    config: LinkConfig,
    tls: Option<Arc<ClusterTls>>,
    runtime: Handle,
}

impl Routes {
    pub fn new(
        shards: u16,
        config: LinkConfig,
        tls: Option<Arc<ClusterTls>>,
        runtime: Handle,
    ) -> Routes {
        Routes {
            by_shard: RwLock::new(vec![None; usize::from(shards)]),
            config,
            tls,
            runtime,
        }
    }

    /// Takes announcements in.
    pub fn learn(&self, owners: &[OwnerRecord]) {
        let is_news = |routes: &[Option<Route>], owner: &OwnerRecord| {
            let known = routes
                .get(usize::from(owner.shard))
                .and_then(Option::as_ref);
            owner.shard < SHARDS_MAX && known.is_none_or(|known| known.epoch < owner.epoch)
        };
        let known = self.by_shard.read().unwrap_or_else(PoisonError::into_inner);
        if !owners.iter().any(|owner| is_news(&known, owner)) {
            return;
        }
        drop(known);
        let mut routes = self
            .by_shard
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut links: BTreeMap<String, Arc<NodeLink>> = routes
            .iter()
            .flatten()
            .filter_map(|route| route.link.clone())
            .map(|link| (link.address.clone(), link))
            .collect();
        for owner in owners {
            if !is_news(&routes, owner) {
                continue;
            }
            let link = links.get(&owner.address).cloned().or_else(|| {
                let link = self.open(owner)?;
                links.insert(owner.address.clone(), Arc::clone(&link));
                Some(link)
            });
            info!(
                shard = owner.shard,
                epoch = owner.epoch,
                node = owner.node,
                address = owner.address,
                "a shard's owner"
            );
            if routes.len() <= usize::from(owner.shard) {
                // There are more shards than before.
                routes.resize(usize::from(owner.shard) + 1, None);
            }
            routes[usize::from(owner.shard)] = Some(Route {
                epoch: owner.epoch,
                node: owner.node.clone(),
                link,
            });
        }
    }

    fn open(&self, owner: &OwnerRecord) -> Option<Arc<NodeLink>> {
        if owner.address.is_empty() {
            return None;
        }
        NodeLink::new(
            &owner.address,
            self.config,
            self.tls.as_ref(),
            &self.runtime,
        )
        .inspect_err(|why| {
            warn!(node = owner.node, address = owner.address, %why, "not an address");
        })
        .ok()
    }

    /// The way to a shard's owner.
    pub fn to(&self, shard: u16) -> Option<Route> {
        let routes = self.by_shard.read().unwrap_or_else(PoisonError::into_inner);
        routes.get(usize::from(shard)).cloned().flatten()
    }

    /// Calls `tell` with each node among the owners of `shards`, once. Returns whether some shard has no way to it.
    pub fn for_each_node(&self, shards: &[u16], mut tell: impl FnMut(&NodeLink)) -> bool {
        let routes = self.by_shard.read().unwrap_or_else(PoisonError::into_inner);
        let link = |shard: &u16| {
            let route = routes.get(usize::from(*shard))?.as_ref()?;
            route.link.as_ref()
        };
        let mut is_lost = false;
        for (n, shard) in shards.iter().enumerate() {
            let Some(this) = link(shard) else {
                is_lost = true;
                continue;
            };
            // Few shards: looking back is cheaper than any set.
            let is_told = shards[..n]
                .iter()
                .filter_map(link)
                .any(|other| Arc::ptr_eq(other, this));
            if !is_told {
                tell(this);
            }
        }
        is_lost
    }

    /// The epoch known of a shard's owner; 0 when none is known.
    pub fn epoch_of(&self, shard: u16) -> u64 {
        let routes = self.by_shard.read().unwrap_or_else(PoisonError::into_inner);
        let route = routes.get(usize::from(shard)).and_then(Option::as_ref);
        route.map_or(0, |route| route.epoch)
    }
}
