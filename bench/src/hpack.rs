//! HPACK (RFC 7541) as far as a gRPC client needs it: the encoder of our fixed request heads, the decoder of any reply
//! head.
//!
//! - The encoder inserts each field once and afterwards names it by its index, as grpc-go does, so that a request head
//!   costs the server seven bytes. `positions` holds the insertion number of each field sent so far; it never evicts,
//!   because all fields together are smaller than the smallest table it uses.
//! - The decoder keeps the whole dynamic table (`size` is always the sum of its entries' sizes and at most `size_max`)
//!   but the values of only those fields that say how a call ended: `:status`, `grpc-status`, `grpc-message`.
//! - Huffman codes are decoded, never produced. The code is canonical, so the lengths alone define it.

use std::collections::VecDeque;

use crate::error::Error;

/// The RPCs the generator calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Range,
    Put,
    Txn,
    Watch,
    LeaseGrant,
    LeaseKeepAlive,
}

impl Path {
    const COUNT: usize = 6;

    fn text(self) -> &'static str {
        match self {
            Path::Range => "/etcdserverpb.KV/Range",
            Path::Put => "/etcdserverpb.KV/Put",
            Path::Txn => "/etcdserverpb.KV/Txn",
            Path::Watch => "/etcdserverpb.Watch/Watch",
            Path::LeaseGrant => "/etcdserverpb.Lease/LeaseGrant",
            Path::LeaseKeepAlive => "/etcdserverpb.Lease/LeaseKeepAlive",
        }
    }
}

/// The table size both sides start with (RFC 7540, 6.5.2), and the only one our decoder offers.
pub(crate) const TABLE_BYTES_DEFAULT: usize = 4096;
/// What the specification adds to name and value for an entry's size.
const ENTRY_BYTES_OVERHEAD: usize = 32;
const STATIC_COUNT: usize = 61;
const AUTHORITY_BYTES_MAX: usize = 300;

/// Writes request heads for one connection.
pub(crate) struct Encoder {
    authority: String,
    positions: [Option<usize>; 4 + Path::COUNT],
    inserted: usize,
    is_indexing: bool,
    owes_size_update: bool,
}

impl Encoder {
    pub(crate) fn new(authority: &str) -> Encoder {
        assert!(authority.len() <= AUTHORITY_BYTES_MAX, "endpoints are checked when they are parsed");
        Encoder {
            authority: authority.to_owned(),
            positions: [None; 4 + Path::COUNT],
            inserted: 0,
            is_indexing: true,
            owes_size_update: false,
        }
    }

    /// Obeys the peer's SETTINGS_HEADER_TABLE_SIZE. A table smaller than the default is not used at all.
    pub(crate) fn limit_table(&mut self, bytes_max: u32) {
        let is_smaller = usize::try_from(bytes_max).is_ok_and(|bytes| bytes < TABLE_BYTES_DEFAULT);
        if is_smaller && self.is_indexing {
            self.is_indexing = false;
            self.owes_size_update = true;
        }
    }

    /// Appends the header block of one request.
    pub(crate) fn request(&mut self, path: Path, out: &mut Vec<u8>) {
        if self.owes_size_update {
            self.owes_size_update = false;
            out.push(0x20);
        }
        // :method POST and :scheme http are entries 3 and 6 of the static table.
        out.extend_from_slice(&[0x83, 0x86]);
        let authority = std::mem::take(&mut self.authority);
        self.field(4 + path as usize, 4, b":path", path.text().as_bytes(), out);
        self.field(0, 1, b":authority", authority.as_bytes(), out);
        self.field(1, 31, b"content-type", b"application/grpc", out);
        self.field(2, 58, b"user-agent", b"orlop-bench", out);
        self.field(3, 0, b"te", b"trailers", out);
        self.authority = authority;
    }

    fn field(&mut self, slot: usize, name_static: usize, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        if let Some(position) = self.positions[slot]
            && self.is_indexing
        {
            assert!(position < self.inserted);
            integer(0x80, 7, STATIC_COUNT + self.inserted - position, out);
            return;
        }
        // Literal with incremental indexing, or (no table) without.
        let (mark, prefix_bits) = if self.is_indexing { (0x40, 6) } else { (0x00, 4) };
        integer(mark, prefix_bits, name_static, out);
        if name_static == 0 {
            integer(0, 7, name.len(), out);
            out.extend_from_slice(name);
        }
        integer(0, 7, value.len(), out);
        out.extend_from_slice(value);
        if self.is_indexing {
            self.positions[slot] = Some(self.inserted);
            self.inserted += 1;
        }
    }
}

/// What a reply head may say about how its call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Status,
    GrpcStatus,
    GrpcMessage,
    Other,
}

impl Name {
    fn of(name: &[u8]) -> Name {
        match name {
            b":status" => Name::Status,
            b"grpc-status" => Name::GrpcStatus,
            b"grpc-message" => Name::GrpcMessage,
            _ => Name::Other,
        }
    }
}

/// How a head, or a head and its trailers, describe the end of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) http_status: Option<u32>,
    pub(crate) grpc_status: Option<u32>,
    /// Still percent-encoded, as gRPC sends it.
    pub(crate) grpc_message: Vec<u8>,
}

impl Fate {
    fn note(&mut self, name: Name, value: &[u8]) -> Result<(), Error> {
        match name {
            Name::Status => self.http_status = Some(decimal(value)?),
            Name::GrpcStatus => self.grpc_status = Some(decimal(value)?),
            Name::GrpcMessage => {
                self.grpc_message.clear();
                self.grpc_message.extend_from_slice(value);
            }
            Name::Other => {}
        }
        Ok(())
    }
}

struct Entry {
    name: Name,
    name_bytes: usize,
    /// Empty for `Name::Other`, whose value nobody asks for.
    value: Vec<u8>,
    /// The entry's size as the specification counts it, dropped value included.
    bytes: usize,
}

/// Reads the reply heads of one connection, in the order they arrived.
pub(crate) struct Decoder {
    entries: VecDeque<Entry>,
    size: usize,
    size_max: usize,
    name_scratch: Vec<u8>,
    value_scratch: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new() -> Decoder {
        Decoder {
            entries: VecDeque::new(),
            size: 0,
            size_max: TABLE_BYTES_DEFAULT,
            name_scratch: Vec::new(),
            value_scratch: Vec::new(),
        }
    }

    /// Reads one complete header block into `fate`.
    pub(crate) fn block(&mut self, mut block: &[u8], fate: &mut Fate) -> Result<(), Error> {
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = take_integer(&mut block, 7)?;
                self.indexed(index, fate)?;
            } else if first & 0xc0 == 0x40 {
                self.literal(&mut block, 6, true, fate)?;
            } else if first & 0xe0 == 0x20 {
                let bytes_max = take_integer(&mut block, 5)?;
                if bytes_max > TABLE_BYTES_DEFAULT {
                    return Err(Error::Http2 { reason: "header table larger than we allow" });
                }
                self.size_max = bytes_max;
                self.evict(0);
            } else {
                self.literal(&mut block, 4, false, fate)?;
            }
        }
        Ok(())
    }

    fn indexed(&self, index: usize, fate: &mut Fate) -> Result<(), Error> {
        if index > STATIC_COUNT {
            let entry = self.entry(index)?;
            return fate.note(entry.name, &entry.value);
        }
        const STATUSES: [u32; 7] = [200, 204, 206, 304, 400, 404, 500];
        match index {
            0 => return Err(Error::Http2 { reason: "header index 0" }),
            8..=14 => fate.http_status = Some(STATUSES[index - 8]),
            _ => {}
        }
        Ok(())
    }

    fn literal(
        &mut self,
        block: &mut &[u8],
        prefix_bits: u32,
        is_inserting: bool,
        fate: &mut Fate,
    ) -> Result<(), Error> {
        let index = take_integer(block, prefix_bits)?;
        let (name, name_bytes) = match index {
            0 => {
                take_string(block, &mut self.name_scratch)?;
                (Name::of(&self.name_scratch), self.name_scratch.len())
            }
            8..=14 => (Name::Status, b":status".len()),
            // The length decides when entries are evicted, so it must be exact.
            1..=STATIC_COUNT => (Name::Other, usize::from(STATIC_NAME_BYTES[index - 1])),
            _ => {
                let entry = self.entry(index)?;
                (entry.name, entry.name_bytes)
            }
        };
        take_string(block, &mut self.value_scratch)?;
        fate.note(name, &self.value_scratch)?;
        if is_inserting {
            self.insert(name, name_bytes);
        }
        Ok(())
    }

    /// Adds (`name`, `value_scratch`) to the table. An entry larger than the table empties it, as the specification has
    /// it.
    fn insert(&mut self, name: Name, name_bytes: usize) {
        let bytes = name_bytes + self.value_scratch.len() + ENTRY_BYTES_OVERHEAD;
        self.evict(bytes);
        if bytes > self.size_max {
            assert!(self.entries.is_empty());
            return;
        }
        let value = if name == Name::Other { Vec::new() } else { self.value_scratch.clone() };
        self.entries.push_front(Entry { name, name_bytes, value, bytes });
        self.size += bytes;
        assert!(self.size <= self.size_max);
    }

    fn evict(&mut self, incoming_bytes: usize) {
        while self.size + incoming_bytes > self.size_max {
            let Some(entry) = self.entries.pop_back() else { break };
            assert!(self.size >= entry.bytes);
            self.size -= entry.bytes;
        }
    }

    fn entry(&self, index: usize) -> Result<&Entry, Error> {
        assert!(index > STATIC_COUNT);
        self.entries.get(index - STATIC_COUNT - 1).ok_or(Error::Http2 { reason: "header index beyond the table" })
    }
}

/// Name lengths of the static table, entries 1 to 61.
const STATIC_NAME_BYTES: [u8; STATIC_COUNT] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14, 16, 13, 12, 6, 4,
    4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10, 25, 17, 10, 4, 3, 16,
];

fn integer(mark: u8, prefix_bits: u32, value: usize, out: &mut Vec<u8>) {
    let prefix_max = (1usize << prefix_bits) - 1;
    if value < prefix_max {
        out.push(mark | u8::try_from(value).expect("below 2^7"));
        return;
    }
    out.push(mark | u8::try_from(prefix_max).expect("below 2^8"));
    let mut rest = value - prefix_max;
    while rest >= 0x80 {
        out.push(0x80 | u8::try_from(rest & 0x7f).expect("seven bits"));
        rest >>= 7;
    }
    out.push(u8::try_from(rest).expect("below 2^7"));
}

fn take_byte(block: &mut &[u8]) -> Result<u8, Error> {
    let (&first, rest) = block.split_first().ok_or(Error::Http2 { reason: "header block ends early" })?;
    *block = rest;
    Ok(first)
}

fn take_integer(block: &mut &[u8], prefix_bits: u32) -> Result<usize, Error> {
    let prefix_max = (1usize << prefix_bits) - 1;
    let mut value = usize::from(take_byte(block)?) & prefix_max;
    if value < prefix_max {
        return Ok(value);
    }
    // Four more bytes reach 2^28: beyond any header block we accept.
    for shift in [0, 7, 14, 21] {
        let byte = take_byte(block)?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Http2 { reason: "header integer too large" })
}

fn take_string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    out.clear();
    let is_huffman = block.first().is_some_and(|first| first & 0x80 != 0);
    let bytes = take_integer(block, 7)?;
    if bytes > block.len() {
        return Err(Error::Http2 { reason: "header string longer than its block" });
    }
    let (text, rest) = block.split_at(bytes);
    *block = rest;
    if is_huffman {
        return HUFFMAN.decode(text, out);
    }
    out.extend_from_slice(text);
    Ok(())
}

fn decimal(value: &[u8]) -> Result<u32, Error> {
    let digits = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    digits.ok_or(Error::Http2 { reason: "status is not a number" })
}

/// Code lengths of the bytes 0 to 255. **Source**: RFC 7541, appendix B; the end-of-string code is 30 ones.
const HUFFMAN_LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26,
];
const HUFFMAN_BITS_MAX: usize = 30;

/// A canonical code: the codes of one length are consecutive numbers, given to the bytes in rising order.
struct Huffman {
    /// Bytes by (length, value).
    bytes: [u8; 256],
    /// For each length: its first code, how many codes, where in `bytes` they begin.
    first: [u32; HUFFMAN_BITS_MAX + 1],
    count: [u32; HUFFMAN_BITS_MAX + 1],
    start: [u32; HUFFMAN_BITS_MAX + 1],
}

static HUFFMAN: Huffman = Huffman::new();

impl Huffman {
    const fn new() -> Huffman {
        let zero = [0; HUFFMAN_BITS_MAX + 1];
        let mut table = Huffman { bytes: [0; 256], first: zero, count: zero, start: zero };
        let (mut length, mut code, mut placed) = (1, 0u32, 0usize);
        while length <= HUFFMAN_BITS_MAX {
            code <<= 1;
            table.first[length] = code;
            #[expect(clippy::cast_possible_truncation, reason = "at most 256, and no conversion is const")]
            let start = placed as u32;
            table.start[length] = start;
            let mut byte = 0u8;
            loop {
                if HUFFMAN_LENGTHS[byte as usize] as usize == length {
                    table.bytes[placed] = byte;
                    placed += 1;
                    code += 1;
                    table.count[length] += 1;
                }
                if byte == u8::MAX {
                    break;
                }
                byte += 1;
            }
            length += 1;
        }
        // All bytes are placed, and the one code left over is end-of-string.
        assert!(placed == 256);
        assert!(code == (1 << HUFFMAN_BITS_MAX) - 1);
        table
    }

    fn decode(&self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let (mut code, mut length) = (0u32, 0usize);
        for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |shift| u32::from(byte >> shift & 1))) {
            code = code << 1 | bit;
            length += 1;
            if length > HUFFMAN_BITS_MAX {
                return Err(Error::Http2 { reason: "unknown Huffman code" });
            }
            let offset = code.wrapping_sub(self.first[length]);
            if offset < self.count[length] {
                out.push(self.bytes[(self.start[length] + offset) as usize]);
                (code, length) = (0, 0);
            }
        }
        // Padding is the beginning of the end-of-string code: fewer than eight ones.
        if length > 7 || code + 1 != 1 << length {
            return Err(Error::Http2 { reason: "bad Huffman padding" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn rfc_huffman_examples_decode() {
        for (coded, plain) in [
            ("f1e3 c2e5 f23a 6ba0 ab90 f4ff", "www.example.com"),
            ("a8eb 1064 9cbf", "no-cache"),
            ("9d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3", "https://www.example.com"),
        ] {
            let mut out = Vec::new();
            HUFFMAN.decode(&hex(coded), &mut out).unwrap();
            assert_eq!(out, plain.as_bytes());
        }
        assert!(HUFFMAN.decode(&[0xff, 0xff], &mut Vec::new()).is_err());
    }

    /// RFC 7541, C.6: replies with a table of 256 bytes, so that the third evicts what the first inserted.
    #[test]
    fn dynamic_table_evicts_as_the_rfc_examples_do() {
        let mut decoder = Decoder::new();
        decoder.size_max = 256;
        let blocks = [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718
             63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7
             b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ];
        for (block, status, size) in [(blocks[0], 302, 222), (blocks[1], 307, 222), (blocks[2], 200, 215)] {
            let mut fate = Fate::default();
            decoder.block(&hex(block), &mut fate).unwrap();
            assert_eq!(fate.http_status, Some(status));
            assert_eq!(decoder.size, size);
        }
    }

    #[test]
    fn a_repeated_request_head_is_seven_bytes() {
        let mut encoder = Encoder::new("127.0.0.1:2379");
        let mut out = Vec::new();
        encoder.request(Path::Put, &mut out);
        let first_bytes = out.len();
        encoder.request(Path::Put, &mut out);
        assert_eq!(out.len() - first_bytes, 7);
        // A peer without a table gets literals, and is told so once.
        encoder.limit_table(0);
        out.clear();
        encoder.request(Path::Put, &mut out);
        assert_eq!(out[0], 0x20);
        assert!(out.len() > 60);
    }

    #[test]
    fn our_own_request_heads_decode() {
        let (mut encoder, mut decoder) = (Encoder::new("localhost:2379"), Decoder::new());
        for path in [Path::Put, Path::Range, Path::Put, Path::Watch, Path::Range] {
            let mut block = Vec::new();
            encoder.request(path, &mut block);
            decoder.block(&block, &mut Fate::default()).unwrap();
        }
        // Four common fields and three paths.
        assert_eq!(decoder.entries.len(), 7);
        assert_eq!(decoder.entries.len(), encoder.inserted);
    }

    #[test]
    fn hostile_blocks_are_refused_not_followed() {
        for block in ["80", "ff ff ff ff ff 7f", "be", "3f ff ff 7f", "00 7f", "88 5f", "40 01"] {
            assert!(Decoder::new().block(&hex(block), &mut Fate::default()).is_err(), "{block}");
        }
    }
}
