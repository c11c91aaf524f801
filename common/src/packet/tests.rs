use super::*;

/// An Ethernet frame with IPv4 and a transport header of 20 bytes.
fn frame(protocol: u8, total: u16, flags: u8) -> [u8; 54] {
    let mut frame = [0; 54];
    frame[12] = 8;
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[23] = protocol;
    frame[26..38].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 2, 0x9c, 0x40, 0, 80]);
    frame[46..48].copy_from_slice(&[0x50, flags]);
    frame
}

#[test]
fn the_short_way_reads_what_the_long_one_reads() {
    let with = |place: usize, byte: u8| {
        let mut frame = frame(6, 40, 0x10);
        frame[place] = byte;
        frame
    };
    let rows = [
        ("TCP", frame(6, 40, 0x10), true),
        ("TCP that opens", frame(6, 40, 0x02), true),
        ("TCP that answers an opening", frame(6, 40, 0x12), true),
        ("UDP", frame(17, 28, 0x02), true),
        ("TCP cut off", frame(6, 39, 0x10), false),
        ("UDP cut off", frame(17, 27, 0), false),
        ("ICMP", frame(1, 40, 0), false),
        ("SCTP", frame(132, 40, 0), false),
        ("options", with(14, 0x46), false),
        ("IPv6 by its version", with(14, 0x65), false),
        ("IPv6 by its type", with(12, 0x86), false),
        ("a later fragment", with(21, 1), false),
        ("a first fragment", with(20, 0x20), false),
        ("that may not come in fragments", with(20, 0x40), true),
    ];
    for (message, frame, usual) in rows {
        for length in [54, 42, 38, 30, 13] {
            let frame = &frame[..length];
            let mut short = Headers { protocol: 99, tcp_flags: 0xff, v4: false, opens: true, ..Headers::default() };
            let mut long = short;
            let taken = short.parse_usual(&frame, 14);
            let shape = long.parse(&frame, 14);
            assert!(!taken || shape == Shape::IP && short == long, "{message}, {length} bytes: {short:?}, {long:?}");
            assert!(taken == usual || length < 54, "{message}");
            assert!(!short.parse_usual(&frame, 0), "{message}: without a link header the short way is closed");
        }
    }
}
