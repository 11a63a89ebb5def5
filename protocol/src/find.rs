//! Bytes looked for in short texts, eight at a time. Names and values of headers and properties are mostly shorter than what it takes
//! to set up a search with vector instructions.

const ONES: u64 = 0x0101_0101_0101_0101;

/// The highest bit of the first byte that is zero, and of no byte before it.
#[inline]
fn first_zero(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & (ONES << 7)
}

/// Where the first byte is that is the one or the other.
#[inline]
pub(crate) fn either(one: u8, other: u8, bytes: &[u8]) -> Option<usize> {
    let (ones, others) = (ONES * u64::from(one), ONES * u64::from(other));
    let (words, rest) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = first_zero(word ^ ones) | first_zero(word ^ others);
        if found != 0 {
            return Some(at * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let in_rest = rest.iter().position(|byte| *byte == one || *byte == other);
    in_rest.map(|at| words.len() * 8 + at)
}

/// Where the byte is first.
#[inline]
pub(crate) fn byte(wanted: u8, bytes: &[u8]) -> Option<usize> {
    either(wanted, wanted, bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_a_loop_finds(bytes in proptest::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..40), one: u8, other in 0..4u8) {
            let expected = bytes.iter().position(|byte| *byte == one || *byte == other);
            prop_assert_eq!(super::either(one, other, &bytes), expected);
            prop_assert_eq!(super::byte(other, &bytes), bytes.iter().position(|byte| *byte == other));
        }
    }
}
