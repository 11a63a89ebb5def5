use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn offset_message_ids_round_trip(ip in any::<IpAddr>(), port in any::<u16>(), offset in any::<u64>()) {
        let id = OffsetMessageId { store_host: SocketAddr::new(ip.to_canonical(), port), physical_offset: PhysicalOffset(offset) };
        let text = id.to_string();
        prop_assert_eq!(text.len(), if id.store_host.is_ipv4() { 32 } else { 56 });
        prop_assert_eq!(text.parse(), Ok(id));
        prop_assert_eq!(text.to_lowercase().parse(), Ok(id));
        prop_assert_eq!(&format!("{:016X}", offset), &text[text.len() - 16..]);
        let mut made = "before,".to_owned();
        OffsetMessageIds::new(id.store_host).push(id.physical_offset, &mut made);
        prop_assert_eq!(made, format!("before,{text}"));
    }

    #[test]
    fn arbitrary_texts_do_not_panic(text in "[0-9A-Fé]{28,34}|[0-9A-F]{56}|.*") {
        let _ = text.parse::<OffsetMessageId>();
    }

    #[test]
    fn a_month_starts_before_and_lasts_at_most_31_days(now in -60_000_000_000_000i64..250_000_000_000_000) {
        let start = month_start_ms(now);
        prop_assert!((0..31 * 86_400_000).contains(&(now - start)));
        prop_assert_eq!(month_start_ms(start), start);
        prop_assert_ne!(month_start_ms(start - 1), start);
    }
}

#[test]
fn ids_have_the_form_of_rocketmq() {
    let id: OffsetMessageId = "7F00000100002A9F0000000000000100".parse().unwrap();
    assert_eq!(id.store_host, "127.0.0.1:10911".parse().unwrap());
    assert_eq!(id.physical_offset, PhysicalOffset(256));
    assert_eq!("7F".parse::<OffsetMessageId>(), Err(IdError::Length(2)));
    assert_eq!("7F0000010001000000000000000000ZZ".parse::<OffsetMessageId>(), Err(IdError::Digit));
    assert_eq!("7F000001000100000000000000000000".parse::<OffsetMessageId>(), Err(IdError::Port(65536)));
}

#[test]
fn unique_keys_count_within_the_month() {
    // 2024-03-01T00:00:01Z, behind a leap day.
    let now = 1_709_251_201_000;
    assert_eq!(month_start_ms(now), now - 1000);
    assert_eq!(month_start_ms(now - 1001), 1_706_745_600_000, "2024-02-01");
    let mut keys = UniqueKeys::new([10, 0, 0, 5].into(), 0x04D2, 0x18B4_AAC2);
    assert_eq!(&*keys.next_key(now), "0A00000504D218B4AAC2000003E80001");
    assert_eq!(&*keys.next_key(now), "0A00000504D218B4AAC2000003E80002");
    assert_eq!(&*keys.next_key(now + 86_400_000), "0A00000504D218B4AAC205265FE80003", "the next day");
    assert_eq!(&*keys.next_key(now - 1001), "0A00000504D218B4AAC295586BFF0004", "the month before");
    let v6 = UniqueKeys::new("2001:db8::5".parse().unwrap(), 1, 2).next_key(now);
    assert_eq!(v6.len(), 56);
    assert!(v6.starts_with("20010DB8"));
}
