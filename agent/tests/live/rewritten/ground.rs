//! The cluster that the questions are asked in: pods, Services of every kind, and what a node's rules do to packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portcullis_testbed::{
    BRIDGE, ExternalTrafficPolicy, Host, Masquerade, Protocol, Proxy, Service, Shape, TestbedOptions,
};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::manifests::{self, Labels, policy, split};

/// The Services' port. Policies speak of [`TARGET`] only.
pub(super) const PORT: u16 = 80;
/// The port behind them.
pub(super) const TARGET: u16 = 8080;
/// The wire server of Azure, from which load balancers probe.
pub(super) const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// Azure's instance metadata.
pub(super) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// AKS's LocalDNS, where a node has one. Here node 0 has.
pub(super) const LOCAL_DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 10, 10);
/// The last part of the cluster DNS's addresses, which node 0's cache holds too, as node-local-dns does.
const DNS: u8 = 53;

const PODS: [(&str, usize); 8] = [
    ("x/client", 0),
    ("x/free", 0),
    ("x/near", 0),
    ("x/bad", 0),
    ("y/far", 1),
    ("y/bad", 1),
    ("y/free", 1),
    ("y/client", 1),
];
/// The pods that policies select as servers, and that they allow by label.
const GOOD: [&str; 2] = ["x/near", "y/far"];

/// A device that wraps what goes to other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tunnel {
    Vxlan,
    /// IPIP, and 6in4 (`sit`) for IPv6.
    Ipip,
}

impl Tunnel {
    /// The devices of a node, by family, IPv4 first.
    const fn devices(self) -> [&'static str; 2] {
        match self {
            Self::Vxlan => ["vx0", "vx0"],
            Self::Ipip => ["tun4", "tun6"],
        }
    }

    fn commands(self, local: Ipv4Addr, remote: Ipv4Addr) -> Vec<String> {
        match self {
            Self::Vxlan => {
                vec![format!("link add vx0 type vxlan id 7 dstport 4789 local {local} remote {remote} dev eth0")]
            }
            Self::Ipip => vec![
                format!("link add tun4 type ipip local {local} remote {remote}"),
                format!("link add tun6 type sit local {local} remote {remote}"),
            ],
        }
    }

    /// Whether this kernel has such devices.
    pub(super) fn is_there(self) -> bool {
        let namespace = portcullis_testbed::Namespace::new("probe-of-tunnels").unwrap();
        let loopback = Ipv4Addr::LOCALHOST;
        let commands = self.commands(loopback, loopback);
        commands.iter().all(|command| namespace.ip([command.replace(" dev eth0", "")]).is_ok())
    }
}

/// What differs from cluster to cluster.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) proxy: Proxy,
    pub(super) br_netfilter: bool,
    /// `net.ipv4.conf.*.rp_filter`.
    pub(super) rp_filter: Option<u8>,
    /// Whether agents are told of Services, or know no more than the range of their addresses.
    pub(super) known_services: bool,
    /// The device by which pods of other nodes are reached, where that is not the uplink itself.
    pub(super) tunnel: Option<Tunnel>,
    /// Whether what leaves the cluster is masqueraded, as ip-masq-agent does it.
    pub(super) ip_masq: bool,
    /// Whether node 0 reaches the outside addresses of [`Who`] through a device of their own.
    pub(super) second_uplink: bool,
    /// Further arguments of the agents.
    pub(super) arguments: Vec<String>,
}

impl Setting {
    pub(super) fn new(name: &'static str, shape: Shape, proxy: Proxy) -> Self {
        Self {
            name,
            shape,
            proxy,
            br_netfilter: true,
            rp_filter: None,
            known_services: true,
            tunnel: None,
            ip_masq: false,
            second_uplink: false,
            arguments: Vec::new(),
        }
    }
}

/// Who may be behind an address, seen from x/client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Itself,
    Near,
    NearBad,
    Far,
    FarBad,
    /// A process of x/client's own node, such as a hostNetwork pod.
    Node,
    OtherNode,
    Outside,
    OtherOutside,
}

impl Who {
    pub(super) const ALL: [Self; 9] = [
        Self::Itself,
        Self::Near,
        Self::NearBad,
        Self::Far,
        Self::FarBad,
        Self::Node,
        Self::OtherNode,
        Self::Outside,
        Self::OtherOutside,
    ];

    /// With which name it answers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Itself => "x/client",
            Self::Near => "x/near",
            Self::NearBad => "x/bad",
            Self::Far => "y/far",
            Self::FarBad => "y/bad",
            Self::Node => "node0",
            Self::OtherNode => "node1",
            Self::Outside | Self::OtherOutside => "outside",
        }
    }
}

/// A Service of the cluster.
#[derive(Clone)]
pub(super) struct Front {
    pub(super) name: &'static str,
    /// The last part of its addresses.
    at: u8,
    pub(super) backends: Vec<Who>,
    pub(super) policy: ExternalTrafficPolicy,
    pub(super) masquerade: Masquerade,
}

impl Front {
    fn new(name: &'static str, at: u8, backends: &[Who]) -> Self {
        let (policy, masquerade) = (ExternalTrafficPolicy::Cluster, Masquerade::FromOutsidePods);
        Self { name, at, backends: backends.to_vec(), policy, masquerade }
    }

    fn local(self) -> Self {
        Self { policy: ExternalTrafficPolicy::Local, ..self }
    }

    pub(super) fn vip(&self, v4: bool) -> IpAddr {
        address(v4, [10, 0, 5, self.at], [0xfd00, 0x10, 0x96, 0])
    }

    /// An address of `spec.externalIPs`.
    pub(super) fn external(&self, v4: bool) -> IpAddr {
        address(v4, [198, 18, 1, self.at], [0x2001, 0xdb8, 0x198, 1])
    }

    /// An address of `status.loadBalancer`. What comes to it from outside arrives at node 0 as it is (floating IP).
    pub(super) fn balancer(&self, v4: bool) -> IpAddr {
        address(v4, [198, 18, 2, self.at], [0x2001, 0xdb8, 0x198, 2])
    }

    pub(super) fn node_port(&self) -> u16 {
        30_000 + u16::from(self.at)
    }
}

/// An address of either family that ends in the same number. The IPv6 one's last but one word is the last of `words`.
fn address(v4: bool, quad: [u8; 4], words: [u16; 4]) -> IpAddr {
    let [a, b, c, kind] = words;
    if v4 { quad.into() } else { [a, b, c, 0, 0, 0, kind, u16::from(quad[3])].into() }
}

/// Takes the address of a family.
pub(super) fn of_family(addresses: &[IpAddr], v4: bool) -> IpAddr {
    *addresses.iter().find(|address| address.is_ipv4() == v4).unwrap()
}

/// The cluster, with an agent on each node.
pub(super) struct Ground {
    pub(super) cluster: LiveCluster,
    pub(super) setting: Setting,
    pub(super) fronts: Vec<Front>,
}

impl Ground {
    pub(super) fn new(setting: Setting) -> Self {
        let plan = Plan { agents: false, ports: Vec::new(), ..Plan::new(setting.shape, &PODS) };
        let (br_netfilter, proxy, rp_filter) = (setting.br_netfilter, setting.proxy, setting.rp_filter);
        let bed = TestbedOptions { br_netfilter, proxy, rp_filter, ..plan.bed };
        let cluster = LiveCluster::new(&Plan { bed, ..plan });
        let fronts = vec![
            Front::new("mixed", 10, &Who::ALL),
            Front::new("mixed-local", 11, &Who::ALL).local(),
            Front { masquerade: Masquerade::All, ..Front::new("mixed-masqueraded", 12, &Who::ALL) },
            Front::new("all-good", 13, &[Who::Near, Who::Far]),
            Front::new("all-bad", 14, &[Who::NearBad, Who::FarBad]),
            Front::new("only-itself", 15, &[Who::Itself]),
            Front::new("only-node", 16, &[Who::Node]),
            Front::new("only-outside", 17, &[Who::Outside]),
            Front::new("empty", 18, &[]),
            Front::new("near", 20, &[Who::Near]),
            Front::new("near-local", 21, &[Who::Near]).local(),
            Front { masquerade: Masquerade::All, ..Front::new("near-masqueraded", 22, &[Who::Near]) },
            Front::new("far", 30, &[Who::Far]),
            Front::new("far-local", 31, &[Who::Far]).local(),
            Front { masquerade: Masquerade::All, ..Front::new("far-masqueraded", 32, &[Who::Far]) },
        ];
        let mut ground = Self { cluster, setting, fronts };
        ground.serve();
        ground.lead();
        ground.install_services();
        ground.install_rules();
        ground.write_pods();
        let arguments = ground.setting.arguments.clone();
        ground.cluster.start_agents(&arguments, &[]);
        ground
    }

    /// Servers on everybody's target port.
    fn serve(&self) {
        let bed = &self.cluster.bed;
        let pods = PODS.map(|(name, _)| Host::clone(self.cluster.pod(name)));
        let hosts = [Host::clone(bed.node(0)), Host::clone(bed.node(1)), bed.outside().clone()];
        for host in pods.iter().chain(&hosts) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                host.serve(protocol, TARGET).unwrap();
            }
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            bed.node(0).serve(protocol, 53).unwrap();
            bed.outside().serve(protocol, 53).unwrap();
        }
    }

    /// Devices, addresses and routes.
    fn lead(&self) {
        let bed = &self.cluster.bed;
        let (outside, fabric) = (bed.outside(), bed.fabric());
        // Everything that no node holds is outside.
        for address in [WIRE_SERVER, METADATA, LOCAL_DNS] {
            outside.namespace().ip([format!("addr add {address}/32 dev eth0")]).unwrap();
            fabric.namespace().ip([format!("route add {address}/32 via 203.0.113.10")]).unwrap();
        }
        for v4 in [true, false] {
            for who in [Who::Outside, Who::OtherOutside] {
                let to = self.address(who, v4);
                if !outside.addresses().contains(&to) && !self.setting.second_uplink {
                    outside.add_address(to).unwrap();
                }
            }
        }
        let node = bed.node(0);
        let cache = self.dns(true);
        node.namespace()
            .ip([
                // Nothing may be masqueraded as them, which the scope says.
                format!("addr add {LOCAL_DNS}/32 dev lo scope host"),
                format!("addr add {cache}/32 dev lo scope host"),
                format!("addr add {}/128 dev lo", self.dns(false)),
            ])
            .unwrap();
        let balanced = [
            format!("route add 198.18.0.0/16 via {}", node.v4().unwrap()),
            format!("route add 2001:db8:198::/48 via {}", node.v6().unwrap()),
        ];
        fabric.namespace().ip(balanced).unwrap();
        if self.setting.second_uplink {
            self.lead_by_second_uplink();
        }
        if let Some(tunnel) = self.setting.tunnel {
            self.lead_through(tunnel);
        }
    }

    fn lead_by_second_uplink(&self) {
        let bed = &self.cluster.bed;
        let (outside, node) = (bed.outside(), bed.node(0));
        let path = outside.namespace().path();
        node.namespace()
            .ip([
                format!("link add eth1 type veth peer name eth1 netns {path}"),
                "link set eth1 up".to_owned(),
                "addr add 198.51.100.1/24 dev eth1".to_owned(),
                "addr add 2001:db8:51::1/64 dev eth1 nodad".to_owned(),
            ])
            .unwrap();
        let mut inside = vec!["link set eth1 up".to_owned()];
        for last in [2, 3] {
            inside.push(format!("addr add 198.51.100.{last}/24 dev eth1"));
            inside.push(format!("addr add 2001:db8:51::{last}/64 dev eth1 nodad"));
        }
        outside.namespace().ip(inside).unwrap();
        // Replies to pods come back by the first uplink, those to the masqueraded address by this one.
        bed.fabric()
            .namespace()
            .ip(["route add 198.51.100.0/24 via 203.0.113.10", "route add 2001:db8:51::/64 via 2001:db8:113::10"])
            .unwrap();
    }

    fn lead_through(&self, tunnel: Tunnel) {
        let [v4, v6] = tunnel.devices();
        for (node, other) in [(0, 1), (1, 0)] {
            let (own, peer) = (self.cluster.bed.node(node), self.cluster.bed.node(other));
            let mut commands = tunnel.commands(own.v4().unwrap(), peer.v4().unwrap());
            commands.extend([
                format!("addr add 192.168.77.{}/24 dev {v4}", node + 1),
                format!("addr add fd77::{}/64 dev {v6} nodad", node + 1),
                format!("link set {v4} up"),
                format!("link set {v6} up"),
                format!("route replace {} via 192.168.77.{} dev {v4}", peer.pod_cidr_v4(), other + 1),
                format!("route replace {} via fd77::{} dev {v6}", peer.pod_cidr_v6(), other + 1),
            ]);
            own.namespace().ip(commands).unwrap();
        }
    }

    fn install_services(&self) {
        let mut services = Vec::new();
        let mut objects = Vec::new();
        for front in &self.fronts {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let service = Service::new(&format!("x/{}-{protocol}", front.name)).port(protocol, PORT);
                let mut service =
                    service.by_source_port().node_port(front.node_port()).external_traffic_policy(front.policy);
                service.masquerade = front.masquerade;
                for v4 in [true, false] {
                    service.vips.push(front.vip(v4));
                    service.external_ips.extend([front.external(v4), front.balancer(v4)]);
                    let backends = front.backends.iter().map(|who| SocketAddr::new(self.address(*who, v4), TARGET));
                    service.backends.extend(backends);
                }
                services.push(service);
            }
            objects.extend(self.service_objects(front));
        }
        // Anybody may give a Service an address that is a node's.
        let node = self.cluster.bed.node(0).addresses();
        let taker = Front::new("taker-of-the-node", 40, &[Who::NearBad]);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut service = Service::new(&format!("x/{}-{protocol}", taker.name)).port(protocol, PORT);
            service.external_ips.clone_from(&node);
            let backend = |v4| SocketAddr::new(self.address(Who::NearBad, v4), TARGET);
            service.backends.extend([true, false].map(backend));
            services.push(service);
        }
        let mut taken = self.service_objects(&taker);
        taken[0]["spec"]["externalIPs"] = json!(node);
        objects.extend(taken);
        let dns = Front { at: DNS, ..Front::new("dns", 0, &[Who::Near]) };
        let mut dns = self.service_objects(&dns);
        for port in dns[0]["spec"]["ports"].as_array_mut().unwrap() {
            port["port"] = 53.into();
        }
        dns[0]["spec"]["clusterIPs"] = json!([self.dns(true).to_string(), self.dns(false).to_string()]);
        objects.extend(dns);
        if self.setting.known_services {
            self.cluster.manifests.write("services", &objects);
        }
        self.cluster.bed.services(services).unwrap();
    }

    /// A Service and its slices, as the API has them.
    fn service_objects(&self, front: &Front) -> Vec<Value> {
        let ports = ["TCP", "UDP"];
        let service_ports = ports.map(|protocol| {
            json!({
                "name": protocol.to_lowercase(), "protocol": protocol, "port": PORT, "targetPort": TARGET,
                "nodePort": front.node_port(),
            })
        });
        let both = |address: &dyn Fn(bool) -> IpAddr| [address(true).to_string(), address(false).to_string()];
        let balancers = both(&|v4| front.balancer(v4)).map(|address| json!({"ip": address}));
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": front.name, "namespace": "x"},
            "spec": {
                "type": "LoadBalancer", "clusterIPs": both(&|v4| front.vip(v4)),
                "externalIPs": both(&|v4| front.external(v4)), "ports": service_ports,
                "externalTrafficPolicy": format!("{:?}", front.policy),
            },
            "status": {"loadBalancer": {"ingress": balancers}},
        })];
        for v4 in [true, false] {
            let family = if v4 { "IPv4" } else { "IPv6" };
            let endpoints: Vec<Value> = (front.backends.iter())
                .map(|who| json!({"addresses": [self.address(*who, v4)], "conditions": {"ready": true}}))
                .collect();
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {
                    "name": format!("{}-{}", front.name, family.to_lowercase()), "namespace": "x",
                    "labels": {"kubernetes.io/service-name": front.name},
                },
                "ports": ports.map(|protocol| {
                    json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": TARGET})
                }),
                "endpoints": endpoints,
            }));
        }
        objects
    }

    /// Rules of others than kube-proxy: ports of the host, the masquerade to outside, and the cache's exemption from
    /// connection tracking.
    fn install_rules(&self) {
        for (v4, node) in [(true, 0), (false, 0), (true, 1), (false, 1)] {
            for (port, who) in [(9100, [Who::Near, Who::Far]), (9101, [Who::NearBad, Who::FarBad])] {
                for protocol in ["tcp", "udp"] {
                    let to = SocketAddr::new(self.address(who[node], v4), TARGET);
                    let rule = format!(
                        "-t nat -A PREROUTING -p {protocol} --dport {port} -m addrtype --dst-type LOCAL -j DNAT --to {to}"
                    );
                    self.iptables(node, v4, &rule);
                }
            }
            if self.setting.ip_masq {
                let (pods, cluster) =
                    if v4 { ("10.244.0.0/16", "10.0.0.0/8") } else { ("fd00:10:244::/48", "fd00::/8") };
                self.iptables(node, v4, &format!("-t nat -A POSTROUTING -s {pods} ! -d {cluster} -j MASQUERADE"));
            }
        }
        for address in [LOCAL_DNS.into(), self.dns(true), self.dns(false)] {
            for protocol in ["udp", "tcp"] {
                let v4 = address.is_ipv4();
                for rule in [
                    format!("PREROUTING -d {address} -p {protocol} --dport 53"),
                    format!("OUTPUT -s {address} -p {protocol} --sport 53"),
                ] {
                    self.iptables(0, v4, &format!("-t raw -A {rule} -j CT --notrack"));
                }
            }
        }
    }

    fn iptables(&self, node: usize, v4: bool, rule: &str) {
        let flavour = if self.setting.proxy == Proxy::IptablesLegacy { "legacy" } else { "nft" };
        let program = format!("{}-{flavour}", if v4 { "iptables" } else { "ip6tables" });
        let arguments: Vec<&str> = ["-w", "10"].into_iter().chain(rule.split(' ')).collect();
        self.cluster.bed.node(node).namespace().tool(&program, &arguments).unwrap();
    }

    fn write_pods(&self) {
        let mut objects = Vec::new();
        for pod in self.cluster.bed.pods() {
            let good = GOOD.contains(&pod.name());
            let labels: Labels = if good { [("app".into(), "good".into())].into() } else { Labels::new() };
            let mut object = manifests::pod(&pod, &[], Some(&labels));
            // The name stands for the target port in good pods only.
            let number = if good { TARGET } else { TARGET + 1 };
            let ports = ["TCP", "UDP"].map(|protocol| {
                json!({"name": format!("app-{}", protocol.to_lowercase()), "containerPort": number, "protocol": protocol})
            });
            object["spec"]["containers"] = json!([{"name": "server", "image": "server", "ports": ports}]);
            objects.push(object);
        }
        // With all the labels that policies ask for; but a pod with its node's addresses is no peer.
        for node in self.cluster.bed.nodes() {
            let labels: Labels = [("app".into(), "good".into()), ("pod".into(), "client".into())].into();
            let addresses: Vec<String> = node.addresses().iter().map(ToString::to_string).collect();
            let mut object =
                manifests::pod_at(&format!("x/host-{}", node.name()), node.name(), &addresses, &[], Some(&labels));
            object["spec"]["hostNetwork"] = true.into();
            objects.push(object);
        }
        self.cluster.manifests.write("pods", &objects);
    }

    pub(super) fn front(&self, name: &str) -> &Front {
        self.fronts.iter().find(|front| front.name == name).unwrap()
    }

    pub(super) fn host(&self, who: Who) -> Host {
        match who {
            Who::Node => Host::clone(self.cluster.bed.node(0)),
            Who::OtherNode => Host::clone(self.cluster.bed.node(1)),
            Who::Outside | Who::OtherOutside => self.cluster.bed.outside().clone(),
            _ => Host::clone(self.cluster.pod(who.name())),
        }
    }

    pub(super) fn address(&self, who: Who, v4: bool) -> IpAddr {
        let host_part = match who {
            Who::Outside => 2,
            Who::OtherOutside => 3,
            _ => return of_family(&self.host(who).addresses(), v4),
        };
        let other: u8 = if self.setting.second_uplink { 51 } else { 113 };
        match (v4, other) {
            (true, 51) => Ipv4Addr::new(198, 51, 100, host_part).into(),
            (true, _) => Ipv4Addr::new(203, 0, 113, host_part).into(),
            (false, 51) => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, host_part.into()).into(),
            (false, _) => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, host_part.into()).into(),
        }
    }

    /// All addresses of a node.
    pub(super) fn node_addresses(&self, node: usize) -> Vec<IpAddr> {
        let mut addresses = self.cluster.bed.node(node).addresses();
        let more = |device: &str| {
            let shown = self.cluster.bed.node(node).namespace().tool("ip", &["-o", "addr", "show", device]).unwrap();
            let prefixes = shown.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
            prefixes.filter_map(|text| text.parse::<IpAddr>().ok()).collect::<Vec<IpAddr>>()
        };
        if self.setting.shape == Shape::Bridged {
            addresses.extend(more(BRIDGE));
        }
        for device in self.setting.tunnel.iter().flat_map(|tunnel| tunnel.devices()) {
            addresses.extend(more(device));
        }
        addresses.sort_by_key(IpAddr::is_ipv6);
        addresses.dedup();
        addresses.retain(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        addresses
    }

    /// The cluster DNS's address.
    pub(super) fn dns(&self, v4: bool) -> IpAddr {
        address(v4, [10, 0, 5, DNS], [0xfd00, 0x10, 0x96, 0])
    }

    /// Whether a pod and another on the same bridge speak past the node that translated their addresses.
    pub(super) fn bridged_past_the_node(&self, masqueraded: bool) -> bool {
        self.setting.shape == Shape::Bridged && !self.setting.br_netfilter && !masqueraded
    }

    /// Makes policies of these specs, and of them alone, the ones in force.
    pub(super) fn enforce(&self, policies: &[(&str, Value)]) {
        let objects: Vec<Value> = policies
            .iter()
            .map(|(name, spec)| {
                let (namespace, name) = split(name);
                policy(namespace, name, spec)
            })
            .collect();
        self.cluster.enforce(&objects);
    }
}

/// An address as an ipBlock.
pub(super) fn block(address: IpAddr) -> Value {
    json!({"ipBlock": {"cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })}})
}
