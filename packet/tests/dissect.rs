//! Whatever a frame is, its key's template agrees with it.

#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part")]
mod common;

use common::{LINKS, Random, cases, frames};
use proptest::prelude::*;
use wirevault_format::LinkType;
use wirevault_packet::{FlowKey, dissect, shape_template, summary, value_layout};

fn check(link: LinkType, data: &[u8]) {
    let d = dissect(link, data);
    let template = d.key.template(d.direction);
    assert!(template.admits(data, data.len() as u32), "{link} {:?} {data:02x?}", d.key);
    let shape = shape_template(d.key.shape()).expect("a shape just made");
    assert!(shape.admits(data, data.len() as u32), "{link} {:?} {data:02x?}", d.key);
    let flags = template.tcp_flags_at().and_then(|at| data.get(at)).copied();
    assert_eq!(d.tcp_flags, flags.unwrap_or(0), "{link} {:?} {data:02x?}", d.key);
    let mut flagged = template.clone();
    flagged.set_tcp_flags(d.tcp_flags, if flags.is_some() { d.tcp_flags } else { 0 });
    assert!(flagged.admits(data, data.len() as u32));

    let again = FlowKey::from_parts(d.key.shape(), d.key.values());
    assert_eq!(again.as_ref(), Ok(&d.key));
    assert_eq!(again.map(|key| key.hash64(7)), Ok(d.key.hash64(7)));
    let layout = value_layout(d.key.shape()).expect("a shape just made");
    let bytes: usize = layout.iter().map(|kind| kind.bytes()).sum();
    assert_eq!(bytes, d.key.values().len());
    // Neither may panic; both always say something.
    assert!(!d.key.describe().to_string().is_empty());
    assert!(!summary::line(link, data, data.len() as u32).to_string().is_empty());
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn templates_agree_with_frames_cut_at_every_length(seed: u64) {
        let mut random = Random::new(seed);
        let link = *random.pick(&LINKS);
        let frame = frames::frame(&mut random, link);
        for len in 0..=frame.len() {
            check(link, &frame[..len]);
        }
    }

    #[test]
    fn templates_agree_with_random_bytes(
        link in prop_oneof![prop::sample::select(LINKS.to_vec()), any::<u16>().prop_map(LinkType)],
        data in prop::collection::vec(
            prop_oneof![any::<u8>(), Just(0), Just(0x45), Just(6)],
            0..300,
        ),
    ) {
        check(link, &data);
    }

    #[test]
    fn damaged_keys_are_refused_or_harmless(
        shape in prop::collection::vec(0u8..36, 0..90),
        values in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        if let Ok(template) = shape_template(&shape) {
            let _ = template.admits(&values, 9);
        }
        if let Ok(key) = FlowKey::from_parts(&shape, &values) {
            let _ = key.template(wirevault_packet::Direction::BtoA);
            let _ = key.describe().to_string();
        }
    }
}
