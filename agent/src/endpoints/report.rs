//! Conditions that a person should know about; nothing here stops the matching.

use std::net::IpAddr;

use super::pods::PodId;

/// A condition that holds now. The matcher gives all of them after every change; who logs them compares with the last.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Report {
    /// A veth claims a pod that another veth already is.
    #[error(
        "veth {name} (ifindex {ifindex}) claims pod {pod}, but veth {holder_name} (ifindex {holder}) is that pod already: \
         {name} is closed. If {holder_name} is left over from an earlier sandbox, remove it; otherwise find out who put the \
         pod's address into a second namespace"
    )]
    Contested {
        /// The newer veth.
        ifindex: u32,
        /// Its name.
        name: String,
        /// The pod that both claim.
        pod: PodId,
        /// The veth that keeps the pod.
        holder: u32,
        /// Its name.
        holder_name: String,
    },
    /// A veth may be one of several pods, and nothing decides.
    #[error(
        "veth {name} (ifindex {ifindex}) may be any of the pods {}: it is pending until only one is left",
        list(pods)
    )]
    Ambiguous {
        /// The veth.
        ifindex: u32,
        /// Its name.
        name: String,
        /// The pods, in order.
        pods: Vec<PodId>,
    },
    /// A veth is named for a pod that is not known, and has the address of one that is.
    #[error(
        "veth {name} (ifindex {ifindex}) has the address of pod {pod}, but Azure CNI's name of another pod, which is not known: \
         it is pending until that pod is known"
    )]
    NamedForUnknown {
        /// The veth.
        ifindex: u32,
        /// Its name.
        name: String,
        /// The pod that the address belongs to.
        pod: PodId,
    },
    /// A pod has a further interface, which is the pod's.
    #[error(
        "veth {name} (ifindex {ifindex}) is a second interface of pod {pod}, which is on veth {first}: the pod's policies \
         hold on both, and only the addresses of the Pod object pass. If it is a network with addresses of its own, set \
         --second-interfaces network"
    )]
    SecondInterface {
        /// The veth.
        ifindex: u32,
        /// Its name.
        name: String,
        /// The pod.
        pod: PodId,
        /// The name of the pod's own veth.
        first: String,
    },
    /// A pod has a further interface, where those are networks of their own.
    #[error(
        "veth {name} (ifindex {ifindex}) leads to pod {pod}, which is on another veth: second interfaces are networks of their \
         own here (--second-interfaces network), so {name} is an exit like any other device, and whatever source address the \
         pod writes there is believed, a neighbour's too, as far as the node's reverse-path filter lets it in"
    )]
    SecondNetwork {
        /// The veth.
        ifindex: u32,
        /// Its name.
        name: String,
        /// The pod.
        pod: PodId,
    },
    /// Inside a matched pod's namespace is an address that belongs to another pod.
    #[error(
        "pod {pod} on veth {name} (ifindex {ifindex}) has address {address} of pod {owner} on its interface: it stays \
         {pod}. Find out what in that pod has NET_ADMIN and set the address"
    )]
    ForeignAddress {
        /// The veth.
        ifindex: u32,
        /// Its name.
        name: String,
        /// The pod that the veth is.
        pod: PodId,
        /// The address found inside.
        address: IpAddr,
        /// The pod that the address belongs to.
        owner: PodId,
    },
    /// The host's name of a veth says one pod and the host's routes another.
    #[error(
        "veth {name} (ifindex {ifindex}) is named for pod {pod}, but its host route says pod {routed}: it is {pod}"
    )]
    NameAgainstRoute {
        /// The veth.
        ifindex: u32,
        /// Its name.
        name: String,
        /// The pod whose name the veth has.
        pod: PodId,
        /// The pod whose address is routed to it.
        routed: PodId,
    },
}

fn list(pods: &[PodId]) -> String {
    pods.iter().map(PodId::to_string).collect::<Vec<_>>().join(", ")
}
