//! Small damage, of the kinds that parsers stumble over.

use crate::conversation::Random;

/// Numbers on the edges of what lengths and counts may be.
const EDGES: &[i32] =
    &[0, 1, 2, 3, 4, 5, -1, -2, i32::MIN, i32::MAX, 0xffff, 0x1_0000, 9_999, 10_000, 10_001, 0x3fff_ffff, 0x4000_0000];

/// Damages `data` in up to a few places.
pub fn mutate(random: &mut Random, data: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let at = random.below(data.len() + 1);
        let end = (at + random.below(32)).min(data.len());
        match random.below(9) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 if at < data.len() => data[at] = random.next().to_be_bytes()[0],
            2 => drop(data.drain(at..end)),
            3 => data.truncate(at),
            4 => {
                let copy = data[at..end].to_vec();
                let to = random.below(data.len() + 1);
                data.splice(to..to, copy);
            }
            5 => data.insert(at, random.next().to_be_bytes()[0]),
            6 if at + 4 <= data.len() => data[at..at + 4].copy_from_slice(&random.choose(EDGES).to_be_bytes()),
            7 if at + 2 <= data.len() => {
                data[at..at + 2].copy_from_slice(random.choose::<[u8; 2]>(&[[0, 0], [255, 255], [128, 0]]))
            }
            8 if random.one_in(2000) => {
                let byte = random.next().to_be_bytes()[0];
                data.splice(at..at, std::iter::repeat_n(byte, random.below(200_000)));
            }
            _ => {}
        }
    }
}
