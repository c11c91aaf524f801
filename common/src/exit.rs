//! A pod's egress judged where the packet leaves, and what is remembered of that for replies.

use crate::classify::EndpointView;
use crate::flow::{self, CONFIRMED, FlowEntry, FlowKey, advance, state};
use crate::layout::{Size, VerdictWord, rule};
use crate::packet::{Drop, Headers};
use crate::stamp::Stamp;
use crate::tables::{Event, Tables};
use crate::verdict::Asked;

/// The flow of the working memory that these functions use.
const OTHER: u32 = 1;

/// What [`judge`] finds of most packets: the flow is known where it leaves, its replies are too, and the packet changes
/// nothing of either. Then it is counted here and goes on. In line, since a call costs as much as a look-up; where this says
/// no, nothing has been done, and [`judge`] is asked.
#[inline(always)]
pub(crate) fn goes_on<T: Tables>(t: T, sender: u32, stamp: Stamp, size: Size) -> bool {
    let (Some(endpoint), Some(work)) = (EndpointView::of(t, sender), t.work()) else { return false };
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let headers = &raw const (*work).headers;
        let flow = &raw mut (*work).flows[OTHER as usize];
        if !stamp.is_deferred() || (*headers).opens {
            return false;
        }
        (*flow).key = FlowKey::new(&*headers, true);
        (*flow).key.local = endpoint.address(t, (*headers).v4);
        (*flow).incarnation = endpoint.incarnation;
        let known = flow::find(t, OTHER, sender);
        if !known || (*flow).revision != endpoint.revision || (*flow).state & (state::INGRESS | state::DEFERRED) != 0 {
            return false;
        }
        let rule = (*flow).rule;
        (*flow).key = FlowKey::new(&*headers, false);
        (*flow).incarnation = 0;
        let found = flow::find(t, OTHER, CONFIRMED);
        let marks = if stamp.confirms() { state::CONFIRM | state::DEFERRED } else { state::DEFERRED };
        let before = (*flow).state;
        if !found
            || (*flow).revision != endpoint.revision
            || (*flow).peer_incarnation != endpoint.incarnation
            || advance(before & state::PROGRESS, &*headers, false) | marks != before & state::FLAGS
        {
            return false;
        }
        t.count(rule, size);
    }
    true
}

/// Judges the egress of the endpoint in a slot on the packet's final destination, and records what is allowed: in the
/// endpoint's share under the true destination, and node-wide under the tuple as it leaves (after masquerade), so that
/// replies are known. The packet's headers are in the working memory. 0 lets it go on.
#[inline(always)]
pub fn judge<T: Tables>(t: T, sender: u32, stamp: Stamp, size: Size) -> Drop {
    let deferred = stamp.is_deferred();
    let Some(endpoint) = EndpointView::of(t, sender) else { return Drop::STAMP };
    let Some(work) = t.work() else { return Drop::STAMP };
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let headers = &raw const (*work).headers;
        let flow = &raw mut (*work).flows[OTHER as usize];
        (*flow).key = FlowKey::new(&*headers, true);
        (*flow).key.local = endpoint.address(t, (*headers).v4);
        (*flow).incarnation = endpoint.incarnation;
        // A packet that was judged at neither hook may be a reply; a deferred one never is.
        let other = if deferred { state::INGRESS | state::DEFERRED } else { state::DEFERRED };
        let found = flow::find(t, OTHER, sender) && !(*headers).opens;
        let current = (*flow).revision == endpoint.revision || found && crate::decide::keeps(t, OTHER, sender, sender);
        if found && !current && !deferred && (*flow).state & state::INGRESS != 0 {
            return judge_reply(t, &endpoint, &*headers, &mut *flow, size);
        }
        if found && current && (*flow).state & other == 0 {
            t.count((*flow).rule, size);
            if !deferred {
                return Drop(0);
            }
        } else {
            let verdict = t.egress(sender, (*headers).destination, Asked::opener(&*headers).at_exit());
            t.count(verdict.rule(), size);
            if !verdict.allows() {
                return Drop::POLICY;
            }
            crate::decide::begin(&mut *flow, &*headers, endpoint.revision);
            (*flow).rule = verdict.rule();
            (*flow).provenance = Stamp::judged(sender, endpoint.generation).provenance();
            (*flow).peer_incarnation = 0;
            t.store_flow(OTHER, sender);
        }
        let counts = if stamp.confirms() { state::CONFIRM } else { 0 };
        confirm(t, &endpoint, &*headers, flow, counts | if deferred { state::DEFERRED } else { 0 });
    }
    Drop(0)
}

/// A reply that its own hook has not seen, of a flow that must be judged again: in the direction in which it was opened.
#[inline(always)]
fn judge_reply<T: Tables>(t: T, endpoint: &EndpointView, headers: &Headers, flow: &mut FlowEntry, size: Size) -> Drop {
    t.note(Event::Rejudged);
    let verdict = crate::decide::verdict_of_stored(t, endpoint.slot, headers, flow);
    t.count(verdict.rule(), size);
    if !verdict.allows() {
        return Drop::POLICY;
    }
    flow.state = advance(flow.state, headers, true);
    flow.revision = endpoint.revision;
    flow.rule = verdict.rule();
    t.store_flow(OTHER, endpoint.slot);
    Drop(0)
}

/// Remembers that a flow has left, as the reply will carry it: from the backend, to whatever the packet's source has
/// become. Looked up with every packet, so that what expired or gave way to another is there again. `marks` are
/// [`state::DEFERRED`] if the client's own entry says so, and [`state::CONFIRM`] if it leaves counting to this one.
#[inline(always)]
unsafe fn confirm<T: Tables>(t: T, endpoint: &EndpointView, headers: &Headers, flow: *mut FlowEntry, marks: u16) {
    // SAFETY: the working memory's flow.
    unsafe {
        let (rule, provenance) = ((*flow).rule, (*flow).provenance);
        (*flow).key = FlowKey::new(headers, false);
        (*flow).incarnation = 0;
        let found = flow::find(t, OTHER, CONFIRMED);
        let known = (*flow).state;
        // Its lifetime is the flow's: a reply after a long pause must still find it.
        let kept = if found && !headers.opens { known & state::PROGRESS } else { 0 };
        (*flow).state = advance(kept, headers, false) | marks;
        if found
            && (*flow).revision == endpoint.revision
            && (*flow).peer_incarnation == endpoint.incarnation
            && (*flow).state == known & state::FLAGS
        {
            return;
        }
        (*flow).revision = endpoint.revision;
        (*flow).rule = rule;
        (*flow).provenance = provenance;
        (*flow).peer_incarnation = endpoint.incarnation;
        t.store_flow(OTHER, CONFIRMED);
    }
}

/// What [`confirms`] finds of most packets, if it is nothing new: a flow that is known and of which the packet changes
/// nothing, or none. In line, since a call costs as much as a look-up.
#[inline(always)]
pub(crate) fn knows<T: Tables>(t: T, size: Size) -> Option<bool> {
    let work = t.work()?;
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let headers = &raw const (*work).headers;
        let flow = &raw mut (*work).flows[OTHER as usize];
        (*flow).key = FlowKey::new(&*headers, true);
        (*flow).incarnation = 0;
        if !flow::find(t, OTHER, CONFIRMED) {
            return Some(false);
        }
        let client = EndpointView::of(t, Stamp((*flow).provenance).slot())?;
        let known = (*flow).state;
        if client.incarnation != (*flow).peer_incarnation
            || client.revision != (*flow).revision
            || advance(known, &*headers, true) != known
        {
            return None;
        }
        if known & state::CONFIRM != 0 {
            t.count((*flow).rule, size);
        }
    }
    Some(true)
}

/// Whether the packet in the working memory reverses a flow that an exit has allowed. Judged again here if its endpoint's
/// revision rose since: the backend is this packet's source, so nobody needs to ask the kernel's connection table.
///
/// The rule that let the flow out counts the reply here where `to_pod` cannot know it: the client's entry says whether
/// all backends are allowed by one rule, its packets say so to the exit, and that notes it. After a policy change `to_pod`
/// leaves every older flow's replies to this: see `counts_again`.
#[inline(always)]
pub fn confirms<T: Tables>(t: T, size: Size) -> bool {
    let Some(work) = t.work() else { return false };
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let headers = &raw const (*work).headers;
        let flow = &raw mut (*work).flows[OTHER as usize];
        // In this table `peer` is where the reply goes to and `local` where it comes from.
        (*flow).key = FlowKey::new(&*headers, true);
        (*flow).incarnation = 0;
        if !flow::find(t, OTHER, CONFIRMED) {
            return false;
        }
        let slot = Stamp((*flow).provenance).slot();
        let Some(client) = EndpointView::of(t, slot) else { return false };
        if client.incarnation != (*flow).peer_incarnation {
            return false;
        }
        let known = (*flow).state;
        (*flow).state = advance(known, &*headers, true);
        let same = client.revision == (*flow).revision;
        if !same && !crate::decide::keeps(t, OTHER, slot, CONFIRMED) {
            let verdict = t.egress(slot, (*headers).source, Asked::answer(&*headers).at_exit());
            if !verdict.allows() {
                return false;
            }
            (*flow).revision = client.revision;
            (*flow).rule = verdict.rule();
            (*flow).state &= !state::CONFIRM;
            if counts_again(known, verdict) {
                (*flow).state |= state::CONFIRM;
                t.count(verdict.rule(), size);
            }
            t.store_flow(OTHER, CONFIRMED);
            return true;
        }
        if known & state::CONFIRM != 0 {
            t.count((*flow).rule, size);
        }
        if !same || (*flow).state != known {
            t.store_flow(OTHER, CONFIRMED);
        }
    }
    true
}

/// Whether what is judged again here is counted here from now on: a deferred flow's, whose own entry needs this word once
/// it is older than its endpoint's revision; unless nothing restricts the client any more, so that nothing is deferred.
#[inline(always)]
pub(crate) const fn counts_again(known: u16, verdict: VerdictWord) -> bool {
    known & state::DEFERRED != 0 && verdict.rule() != rule::NO_POLICY
}
