//! ICMP errors: they pass when the packet that they quote belongs to a tracked, allowed flow, and only then.
//!
//! A rule that admits ICMP does not admit errors about flows that nobody has; a direction that nothing restricts lets every
//! error through. The quoted packet went the other way, at the very hook where the flow has its entry, and the host's
//! translation has been undone in the quote as in the addresses (nf_nat_icmp_reply_translation): so the quote's tuple is
//! the entry's. An error goes to the sender of what it quotes; otherwise it would be a way to send anything anywhere.

use crate::classify::EndpointView;
use crate::decide::verdict_of_stored;
use crate::flow::{self, CONFIRMED, FlowKey, state};
use crate::layout::{Size, VerdictWord};
use crate::packet::{Drop, Headers};
use crate::stamp::Stamp;
use crate::tables::{Event, Tables, Work};
use crate::verdict::Asked;

/// The flow of the working memory that these functions use.
const OTHER: u32 = 1;

/// Judges the error in the working memory for an endpoint: one that it sends (`outgoing`) or receives. Gives the flow's
/// [`state`], or the reason for dropping.
#[inline(always)]
pub fn judge<T: Tables>(t: T, slot: u32, outgoing: bool, size: Size) -> Result<u16, Drop> {
    let (Some(endpoint), Some(work)) = (EndpointView::of(t, slot), t.work()) else { return Err(Drop::STAMP) };
    // SAFETY: the working memory is this decision's own.
    unsafe {
        if !(*work).headers.destination.same((*work).quoted.source) {
            return Err(Drop::UNRELATED);
        }
        let flow = &raw mut (*work).flows[OTHER as usize];
        (*flow).key = FlowKey::new(&(*work).quoted, !outgoing);
        (*flow).incarnation = endpoint.incarnation;
        if !flow::find(t, OTHER, slot) {
            return Err(Drop::UNRELATED);
        }
        if (*flow).revision != endpoint.revision && !crate::decide::keeps(t, OTHER, slot, slot) {
            t.note(Event::Rejudged);
            let verdict = judge_again(t, slot, outgoing, work);
            if !verdict.allows() {
                t.count(verdict.rule(), size);
                return Err(Drop::POLICY);
            }
            (*flow).state &= !(state::DEFERRED | state::CONFIRM | state::ENDS_HERE);
            if verdict.defers() {
                (*flow).state |= crate::decide::deferral(verdict, true);
            }
            (*flow).revision = endpoint.revision;
            (*flow).rule = verdict.rule();
            t.store_flow(OTHER, slot);
        }
        // What needs the exit's word is counted where that is found.
        let elsewhere = if outgoing { state::DEFERRED } else { state::CONFIRM };
        if (*flow).state & elsewhere == 0 {
            t.count((*flow).rule, size);
        }
        Ok((*flow).state)
    }
}

/// The verdict of the quoted packet's flow, asked by whichever of the quoted packet and its mirror answers the opener.
#[inline(always)]
unsafe fn judge_again<T: Tables>(t: T, slot: u32, outgoing: bool, work: *mut Work) -> VerdictWord {
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let flow = &(*work).flows[OTHER as usize];
        let opened_by_peer = flow.state & state::INGRESS != 0;
        if opened_by_peer == outgoing {
            mirror(&mut (*work).quoted);
        }
        let answer = &(*work).quoted;
        if opened_by_peer {
            verdict_of_stored(t, slot, answer, flow)
        } else {
            t.egress(slot, answer.source, Asked::answer(answer))
        }
    }
}

#[inline(always)]
fn mirror(headers: &mut Headers) {
    *headers = headers.mirrored();
}

/// Judges an error that a pod has sent about a flow of its own to a translatable address, where it leaves. What it quotes
/// came from the flow's true destination; the exit has an entry for that if it has let the flow out.
#[inline(always)]
pub fn judge_at_exit<T: Tables>(t: T, sender: u32, size: Size) -> Drop {
    let (Some(endpoint), Some(work)) = (EndpointView::of(t, sender), t.work()) else { return Drop::STAMP };
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let quoted = &(*work).quoted;
        if !(*work).headers.destination.same(quoted.source) {
            return Drop::UNRELATED;
        }
        let flow = &raw mut (*work).flows[OTHER as usize];
        (*flow).key = FlowKey::new(quoted, false);
        (*flow).key.local = endpoint.address(t, quoted.v4);
        (*flow).incarnation = endpoint.incarnation;
        if !flow::find(t, OTHER, sender) || (*flow).state & (state::INGRESS | state::DEFERRED) != 0 {
            return Drop::UNRELATED;
        }
        let kept = (*flow).revision == endpoint.revision || crate::decide::keeps(t, OTHER, sender, sender);
        let mut rule = (*flow).rule;
        if !kept {
            let verdict = t.egress(sender, quoted.source, Asked::answer(quoted).at_exit());
            rule = verdict.rule();
            if !verdict.allows() {
                t.count(rule, size);
                return Drop::POLICY;
            }
        }
        t.count(rule, size);
    }
    Drop(0)
}

/// Whether what the error in the working memory quotes is a flow that an exit has allowed: see
/// [`crate::exit::confirms`], which asks the same of replies.
#[inline(always)]
pub fn confirms<T: Tables>(t: T, size: Size) -> bool {
    let Some(work) = t.work() else { return false };
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let quoted = &(*work).quoted;
        let flow = &raw mut (*work).flows[OTHER as usize];
        // In this table `peer` is where replies go to, which is where the quoted packet came from.
        (*flow).key = FlowKey::new(quoted, false);
        (*flow).incarnation = 0;
        if !flow::find(t, OTHER, CONFIRMED) {
            return false;
        }
        let slot = Stamp((*flow).provenance).slot();
        let Some(client) = EndpointView::of(t, slot) else { return false };
        if client.incarnation != (*flow).peer_incarnation {
            return false;
        }
        if client.revision != (*flow).revision && !crate::decide::keeps(t, OTHER, slot, CONFIRMED) {
            let verdict = t.egress(slot, quoted.destination, Asked::opener(quoted).at_exit());
            if verdict.allows() && crate::exit::counts_again((*flow).state, verdict) {
                t.count(verdict.rule(), size);
            }
            return verdict.allows();
        }
        if (*flow).state & state::CONFIRM != 0 {
            t.count((*flow).rule, size);
        }
        true
    }
}
