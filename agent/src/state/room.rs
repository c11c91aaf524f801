//! How much of the tables one agent may fill.
//!
//! An agent that takes over from another builds its tables beside those in force, so both must fit. If one agent could fill
//! the tables, its successor would find no room, and fail until somebody uninstalls what is enforced. So a table counts as
//! full when a second of its size would no longer fit beside it. Where the cluster has grown meanwhile, the old tables
//! decide until there is room, as with any full table.

use super::desired::Desired;
use super::image::{Full, Sizes};
use portcullis_common::layout::WAYS;

/// Of ten cells of a table these may be used by one agent: two choices among buckets of eight find room for any key while
/// seven are used if the keys are random, and while six are if they are neighbouring addresses.
const SHARE: usize = 3;
const OF: usize = 10;

impl Sizes {
    /// Rows with short keys (profiles, verdicts, reaches) of one agent.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.narrow_buckets as usize * WAYS * SHARE / OF
    }

    /// Addresses and Service ports of one agent.
    #[must_use]
    pub const fn addresses(&self) -> usize {
        self.wide_buckets as usize * WAYS * SHARE / OF
    }

    /// Ranges of one agent.
    #[must_use]
    pub const fn own_ranges(&self) -> usize {
        self.ranges as usize / 2
    }

    /// The number of buckets that gives one agent room for so many rows.
    #[must_use]
    pub fn buckets_for(rows: u32) -> u32 {
        let buckets = (rows as usize * OF).div_ceil(SHARE * WAYS);
        u32::try_from(buckets).unwrap_or(1 << 24).clamp(16, 1 << 24).next_power_of_two()
    }

    /// Checks that the tables have room for these, and then for a successor's.
    ///
    /// # Errors
    /// One of them does not fit.
    pub fn check(&self, desired: &Desired) -> Result<(), Full> {
        let narrow = desired.profiles.len()
            + desired.set_defaults.len()
            + desired.verdicts.len()
            + desired.profile_defaults.len()
            + desired.reaches.len()
            + desired.reach_defaults.len();
        let wide = desired.addresses.len() + desired.services.len();
        let rows = [
            ("rows", narrow, self.rows()),
            ("addresses", wide, self.addresses()),
            ("ranges", desired.ranges.len(), self.own_ranges()),
        ];
        match rows.into_iter().find(|(_, used, capacity)| used > capacity) {
            Some((table, used, capacity)) => Err(Full { table, used, capacity }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use portcullis_common::layout::{narrow, narrow_key};

    use super::*;
    use crate::state::flat::address_key;
    use crate::state::image::{Image, Regions};
    use crate::state::{ClassId, PeerEntry};

    #[test]
    fn what_two_agents_may_use_fits_side_by_side() {
        for (seed, sizes) in (1..=16).map(|seed| (seed, Sizes::small())).chain([(41, Sizes::default())]) {
            let mut image = Image::new(Regions::ordinary(&sizes), sizes);
            image.set_seed(seed);
            for bank in [0, 1] {
                for row in 0..sizes.addresses() as u32 {
                    let address = IpAddr::from((0x0a00_0000 + row).to_be_bytes());
                    let put = image.put_wide(&address_key(address, bank), 1 << 32 | 1);
                    put.unwrap_or_else(|full| panic!("seed {seed}, bank {bank}, address {row}: {full}"));
                }
                for row in 0..sizes.rows() as u32 {
                    let put = image.put_narrow(narrow_key(narrow::PROFILE, 1 + bank, row), 1 << 63 | 1);
                    put.unwrap_or_else(|full| panic!("seed {seed}, agent {bank}, row {row}: {full}"));
                }
            }
        }
    }

    #[test]
    fn a_table_is_full_before_its_successor_would_not_fit() {
        let sizes = Sizes::small();
        let mut desired = Desired::default();
        let address = |row: usize| IpAddr::from((0x0a00_0000 + row as u32).to_be_bytes());
        for row in 0..sizes.addresses() {
            desired.addresses.insert(address(row), PeerEntry { class: ClassId(1), ..PeerEntry::default() });
        }
        assert_eq!(sizes.check(&desired), Ok(()), "what there is room for");
        desired.addresses.insert(address(sizes.addresses()), PeerEntry::default());
        let full = sizes.check(&desired).unwrap_err();
        assert_eq!((full.table, full.used, full.capacity), ("addresses", sizes.addresses() + 1, sizes.addresses()));
    }

    #[test]
    fn tables_made_for_so_many_rows_have_room_for_them() {
        for rows in [1, 100, 45_875, 91_750, 91_751, 1 << 20] {
            let buckets = Sizes::buckets_for(rows);
            let sizes = Sizes { wide_buckets: buckets, ..Sizes::default() };
            assert!(sizes.addresses() >= rows as usize, "{rows}: {buckets}");
            assert!(buckets <= 16 || sizes.addresses() / 2 <= rows as usize, "{rows}: not more than twice: {buckets}");
        }
    }
}
