//! Entries against prost's encoding of the whole message, and against bytes that etcd's own Go code made.

use super::*;
use crate::etcdserverpb::InternalRaftRequest;

fn header() -> RequestHeader {
    RequestHeader { id: 0x8211_f1d0_f64f_3269, username: "root".to_owned(), auth_revision: 7 }
}

fn entry(header: &RequestHeader, kind: Kind, raw: &[u8]) -> Bytes {
    let encoded = encode(header, kind, raw);
    assert_eq!(encoded.entry.len(), encoded_len(header, kind, raw.len()));
    assert_eq!(encoded.request(), raw);
    assert_eq!(request_id(&encoded.entry), Some(header.id));
    encoded.entry
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
fn a_header_is_read_alone_as_with_its_request() {
    let header = RequestHeader { id: 9, username: "alice".into(), auth_revision: 7 };
    for kind in [Kind::Put, Kind::AuthUserAdd] {
        let entry = encode(&header, kind, &[]).entry;
        assert_eq!(super::header(&entry).unwrap(), header);
        assert_eq!(decode(entry).unwrap().0, header);
    }
    assert!(matches!(super::header(&[]), Err(Error::NoHeader)));
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
    let entry = unhex("08094204083c1005");
    assert_eq!(request_id(&entry), Some(9));
    assert_eq!(decode(entry), Ok((header, grant)));
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

#[test]
fn an_entry_is_made_in_one_piece_and_its_request_lies_in_it() {
    for kind in [Kind::Put, Kind::AuthRoleAdd] {
        let encoded = encode(&header(), kind, b"\x0a\x01k");
        let memory = encoded.entry.as_ptr_range();
        let request = encoded.request();
        assert!(memory.contains(&request.as_ptr()) && request == b"\x0a\x01k"[..]);
        let Ok((_, known)) = decode(encoded.entry.clone()) else { panic!("it was just encoded") };
        assert_eq!(Request::decode(kind, request), Ok(known));
        // Bytes keep the vector that they are made from, if it has no room to spare.
        assert_eq!(Vec::from(encoded.entry).capacity(), encoded_len(&header(), kind, 3));
    }
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    /// One field of an entry: an id in its old place, a header, a request, or something unknown.
    fn field(&mut self) -> Vec<u8> {
        let mut field = Vec::new();
        match self.below(8) {
            0 => prost::encoding::uint64::encode(1, &(self.below(3) as u64), &mut field),
            1 => prost::encoding::uint64::encode(7000, &self.0, &mut field),
            2..5 => {
                let username = ["", "root"][self.below(2)].to_owned();
                let header = RequestHeader { id: self.0 >> self.below(64), username, auth_revision: 3 };
                let mut header = header.encode_to_vec();
                match self.below(4) {
                    0 => header.extend_from_slice(&[0x08, 5]),
                    // A group that nobody knows.
                    1 => header.extend_from_slice(&[0x7b, 0x7c]),
                    _ => {}
                }
                prost::encoding::bytes::encode(100, &header, &mut field);
            }
            _ => prost::encoding::bytes::encode([3, 4, 11, 1000][self.below(4)], &Vec::new(), &mut field),
        }
        field
    }
}

#[test]
fn the_id_of_an_entry_is_that_of_its_decoded_header() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut whole, mut old) = (0, 0);
    for _ in 0..50_000 {
        let mut entry: Vec<u8> = (0..1 + random.below(4)).flat_map(|_| random.field()).collect();
        if random.below(3) == 0 {
            let at = random.below(entry.len());
            match random.below(3) {
                0 => entry[at] = u8::try_from(random.below(256)).unwrap(),
                1 => entry.truncate(at),
                _ => entry.insert(at, u8::try_from(random.below(256)).unwrap()),
            }
        }
        let id = request_id(&entry);
        match decode(Bytes::from(entry.clone())) {
            Ok((header, _)) => {
                assert_eq!(id, Some(header.id), "{entry:x?}");
                whole += 1;
                old += usize::from(fields(&entry).any(|field| matches!(field, Ok((1, Value::Varint(1..))))));
            }
            Err(Error::NoHeader) => assert_eq!(id, None, "{entry:x?}"),
            Err(_) => {}
        }
    }
    assert!(whole > 5000 && old > 500, "{whole} decoded, {old} with the id in its old place");
}
