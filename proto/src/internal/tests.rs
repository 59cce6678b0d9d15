//! Entries against prost's encoding of the whole message, and against bytes that etcd's own Go code made.

use super::*;
use crate::etcdserverpb::InternalRaftRequest;

fn header() -> RequestHeader {
    RequestHeader { id: 0x8211_f1d0_f64f_3269, username: "root".to_owned(), auth_revision: 7 }
}

fn entry(header: &RequestHeader, kind: Kind, raw: &[u8]) -> Bytes {
    let mut out = vec![];
    encode(header, kind, raw, &mut out);
    assert_eq!(out.len(), encoded_len(header, kind, raw.len()));
    Bytes::from(out)
}

fn unhex(hex: &str) -> Bytes {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// A canonical, non-empty encoding of the message: field 1 as a number, as text, as a message, or field 2; empty if it
/// has no fields.
fn sample<M: Message + Default + PartialEq>() -> (M, Vec<u8>) {
    [&[0x08, 0x01][..], &[0x0a, 0x01, b'k'], &[0x0a, 0x02, 0x08, 0x05], &[0x0a, 0x02, 0x1a, 0x00], &[]]
        .into_iter()
        .find_map(|raw| {
            M::decode(raw).ok().filter(|message| message.encode_to_vec() == raw).map(|message| (message, raw.to_vec()))
        })
        .unwrap()
}

macro_rules! check_kinds {
    ($($kind:ident $field:ident $number:literal $message:ty,)*) => {
        $({
            let (message, raw) = sample::<$message>();
            let known = Some(message.clone());
            let whole = InternalRaftRequest { header: Some(header()), $field: known, ..Default::default() };
            let entry = entry(&header(), Kind::$kind, &raw);
            assert_eq!(entry, whole.encode_to_vec(), stringify!($kind));
            assert_eq!(decode(entry), Ok((header(), Request::$kind(message))), stringify!($kind));
        })*
    };
}

#[test]
fn entry_equals_the_encoding_of_the_whole_message() {
    with_kinds!(check_kinds);
    assert!(sample::<pb::PutRequest>().1.len() > 1 && sample::<pb::LeaseCheckpointRequest>().1.len() > 1);
}

#[test]
fn every_request_field_of_the_message_has_a_kind() {
    let pool =
        prost_reflect::DescriptorPool::decode(&include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin"))[..]).unwrap();
    let message = pool.get_message_by_name("etcdserverpb.InternalRaftRequest").unwrap();
    let mut fields: Vec<_> = message.fields().map(|field| u64::from(field.number())).collect();
    fields.retain(|number| ![FIELD_ID, FIELD_HEADER].contains(number));
    fields.sort_unstable();
    assert_eq!(fields, Kind::ALL.iter().map(|kind| kind.number()).collect::<Vec<_>>());
}

#[test]
fn entry_equals_what_etcd_writes() {
    let put = pb::PutRequest {
        key: Bytes::from_static(b"k\xff"),
        value: Bytes::from_static(b"v"),
        lease: -1,
        prev_kv: true,
        ..Default::default()
    };
    let golden = unhex("22140a026bff12017618ffffffffffffffffff012001a2061308e9e4bcb28fbafc8882011204726f6f741807");
    assert_eq!(entry(&header(), Kind::Put, &put.encode_to_vec()), golden);
    assert_eq!(decode(golden), Ok((header(), Request::Put(put))));

    let role = pb::AuthRoleAddRequest { name: "r".to_owned() };
    let golden = unhex("a2061308e9e4bcb28fbafc8882011204726f6f741807824b030a0172");
    assert_eq!(entry(&header(), Kind::AuthRoleAdd, &role.encode_to_vec()), golden);
    assert_eq!(decode(golden), Ok((header(), Request::AuthRoleAdd(role))));

    let empty_header = unhex("a20600e2ea04070a05332e362e30");
    assert_eq!(entry(&RequestHeader::default(), Kind::DowngradeVersionTest, b"\x0a\x053.6.0"), empty_header);
    assert!(decode(empty_header).is_ok());
}

#[test]
fn old_form_of_the_id_is_read() {
    let grant = Request::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id: 5 });
    let header = RequestHeader { id: 9, ..Default::default() };
    assert_eq!(decode(unhex("08094204083c1005")), Ok((header, grant)));
}

#[test]
fn client_bytes_are_embedded_as_they_came() {
    // Fields out of order, an unknown field 15, a default written out: legal, and not what an encoder would make.
    let raw = [0x12, 0x01, b'v', 0x7a, 0x02, 9, 9, 0x18, 0x00, 0x0a, 0x01, b'k'];
    let entry = entry(&header(), Kind::Put, &raw);
    assert!(entry.windows(raw.len()).any(|window| window == raw));
    let put = pb::PutRequest { key: Bytes::from_static(b"k"), value: Bytes::from_static(b"v"), ..Default::default() };
    assert_eq!(decode(entry), Ok((header(), Request::Put(put))));
}

#[test]
fn decoded_values_share_the_entrys_memory() {
    let put = pb::PutRequest { key: Bytes::from_static(b"k"), value: Bytes::from(vec![7; 1000]), ..Default::default() };
    let txn = pb::TxnRequest {
        success: vec![pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }],
        ..Default::default()
    };
    let entry = entry(&header(), Kind::Txn, &txn.encode_to_vec());
    let memory = entry.as_ptr_range();
    let Ok((_, Request::Txn(decoded))) = decode(entry.clone()) else { panic!("not a txn") };
    assert_eq!(decoded, txn);
    let Some(pb::request_op::Request::RequestPut(put)) = &decoded.success[0].request else { panic!("not a put") };
    assert!(memory.contains(&put.value.as_ptr()) && put.value.len() == 1000);
}

#[test]
fn what_etcd_would_abort_on_is_an_error() {
    let put = entry(&header(), Kind::Put, b"\x0a\x01k");
    assert_eq!(decode(Bytes::new()), Err(Error::NoHeader));
    assert_eq!(decode(Bytes::from_static(b"\x22\x03\x0a\x01k")), Err(Error::NoHeader));
    let mut header_only = vec![];
    InternalRaftRequest { header: Some(header()), ..Default::default() }.encode(&mut header_only).unwrap();
    assert_eq!(decode(Bytes::from(header_only.clone())), Err(Error::NoRequest));
    // Field 2 (an old release's form) and a field of the future are no requests.
    let foreign = [&b"\x12\x00"[..], &header_only, b"\xe2\xff\x7f\x00"].concat();
    assert_eq!(decode(Bytes::from(foreign)), Err(Error::NoRequest));
    let two = [&put[..], &entry(&header(), Kind::Compaction, b"\x08\x01")].concat();
    assert_eq!(decode(Bytes::from(two)), Err(Error::SeveralRequests));
}

#[test]
fn damaged_entry_never_decodes_to_another_request() {
    let whole = entry(&header(), Kind::Put, b"\x0a\x01k\x12\x03vvv");
    for length in 0..whole.len() {
        assert!(decode(whole.slice(..length)).is_err(), "{length}");
    }
    assert_eq!(decode(Bytes::from_static(b"\x22\xff\xff\xff\xff\x0f")), Err(Error::Damaged { field: 4 }));
    assert_eq!(decode(Bytes::from_static(b"\x23")), Err(Error::Damaged { field: 4 }));
    assert_eq!(decode(Bytes::from_static(b"\x25\x00")), Err(Error::Damaged { field: 4 }));
    let bad_key = entry(&header(), Kind::Put, b"\x0a\x05k");
    assert!(matches!(decode(bad_key), Err(Error::Malformed(_))));
}
