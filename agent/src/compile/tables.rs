//! The desired tables, and which of their keys the last compile touched.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashSet;

use crate::model::Protocol;
use crate::state::{
    ClassId, Desired, EndpointPolicy, LocalId, PeerEntry, PortClass, ProfileId, RuleIdentity, RuleNumber,
    ServiceKeyPort, ServiceNumber, ServiceReach, SetId, TableVerdict,
};

/// What the last compile changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Anything: there was nothing before.
    All,
    /// At most these keys. A key that the new [`Desired`] holds was added or changed, one that it does not hold was removed.
    Keys(Box<TouchedKeys>),
}

/// Whatever a key names, in tables ordered by key and in hashed ones.
trait Table<K, V> {
    fn look(&self, key: &K) -> Option<&V>;
    fn write(&mut self, key: K, value: V);
    fn clear(&mut self, key: &K);
}

impl<K: Ord, V> Table<K, V> for BTreeMap<K, V> {
    fn look(&self, key: &K) -> Option<&V> {
        self.get(key)
    }
    fn write(&mut self, key: K, value: V) {
        self.insert(key, value);
    }
    fn clear(&mut self, key: &K) {
        self.remove(key);
    }
}

impl<K: Eq + Hash, V, S: BuildHasher> Table<K, V> for HashMap<K, V, S> {
    fn look(&self, key: &K) -> Option<&V> {
        self.get(key)
    }
    fn write(&mut self, key: K, value: V) {
        self.insert(key, value);
    }
    fn clear(&mut self, key: &K) {
        self.remove(key);
    }
}

fn put<K: Clone + Eq + Hash, V: PartialEq>(
    table: &mut impl Table<K, V>,
    touched: Option<&mut FxHashSet<K>>,
    key: K,
    value: Option<V>,
) -> bool {
    if table.look(&key) == value.as_ref() {
        return false;
    }
    if let Some(touched) = touched {
        touched.insert(key.clone());
    }
    match value {
        Some(value) => table.write(key, value),
        None => table.clear(&key),
    }
    true
}

macro_rules! tables {
    ($($(#[$doc:meta])* $table:ident: $key:ty => $value:ty),* $(,)?) => {
        /// Keys of each table of [`Desired`] that a compile added, changed or removed.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct TouchedKeys {
            $($(#[$doc])* pub $table: FxHashSet<$key>,)*
        }

        impl TouchedKeys {
            /// Whether no table changed.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                $(self.$table.is_empty())&&*
            }
        }

        impl Touched {
            /// Brings `before` to `after`, given that this is what was touched between them.
            pub fn apply(&self, before: &mut Desired, after: &Desired) {
                let Self::Keys(keys) = self else {
                    before.clone_from(after);
                    return;
                };
                $(for key in &keys.$table {
                    put(&mut before.$table, None, key.clone(), after.$table.look(key).cloned());
                })*
                before.rejudge.clone_from(&after.rejudge);
            }
        }

        impl Tables {
            $(
                /// Sets or clears one element; tells whether that changed anything.
                pub(super) fn $table(&mut self, key: $key, value: Option<$value>) -> bool {
                    let touched = self.keep_touched.then_some(&mut self.touched.$table);
                    put(&mut self.desired.$table, touched, key, value)
                }
            )*
        }
    };
}

/// The tables while they are being compiled.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) desired: Desired,
    pub(super) touched: TouchedKeys,
    /// Not on the first compile, when everything is touched.
    pub(super) keep_touched: bool,
}

tables! {
    /// Endpoints.
    endpoints: LocalId => EndpointPolicy,
    /// Single addresses.
    addresses: IpAddr => PeerEntry,
    /// Ranges of addresses.
    ranges: IpNet => PeerEntry,
    /// Runs of ports, by protocol and first port.
    ports: (Protocol, u16) => (u16, PortClass),
    /// Profiles of sets and classes.
    profiles: (SetId, ClassId, bool) => ProfileId,
    /// Profiles of sets for all other classes.
    set_defaults: SetId => ProfileId,
    /// Verdicts of profiles and port classes.
    verdicts: (ProfileId, PortClass) => TableVerdict,
    /// Verdicts of profiles for all other port classes.
    profile_defaults: ProfileId => TableVerdict,
    /// Service ports.
    services: ServiceKeyPort => ServiceNumber,
    /// Reach of sets and Service ports.
    reaches: (SetId, ServiceNumber) => ServiceReach,
    /// Reach of sets for all other Service ports.
    reach_defaults: SetId => ServiceReach,
    /// Names of rules.
    rules: RuleNumber => RuleIdentity,
}
