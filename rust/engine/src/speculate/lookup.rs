//! Prompt lookup: what followed the last tokens when they were there before is guessed to follow again.
//!
//! The idea is that of prompt lookup decoding (Saxena, 2023). A map from pairs of tokens to places makes the search as long as the
//! list of places, not as the text.

use std::collections::HashMap;

/// Places that are compared, the latest first; more are of a pair too common to tell anything.
const PLACES: usize = 48;
/// A longer match is no better.
pub(super) const LONGEST: usize = 16;
/// Marks the end of a chain of places.
const NONE: u32 = u32::MAX;

/// A text and where each pair of its tokens was.
#[derive(Debug)]
pub(super) struct Lookup {
    tokens: Vec<u32>,
    /// The last place of a pair: the index of its second token.
    last: HashMap<(u32, u32), u32>,
    /// For each token the place before of the pair that ends there.
    before: Vec<u32>,
}

/// An earlier place that ends as the text does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// The token behind it.
    pub next: usize,
    /// Tokens that agree, at most [`LONGEST`].
    pub length: usize,
}

impl Lookup {
    pub fn new(tokens: &[u32]) -> Self {
        let mut lookup = Self { tokens: Vec::new(), last: HashMap::new(), before: Vec::new() };
        tokens.iter().for_each(|&token| lookup.push(token));
        lookup
    }

    /// Takes memory for so many further tokens.
    pub fn reserve(&mut self, tokens: usize) {
        self.tokens.reserve(tokens);
        self.last.reserve(tokens);
        self.before.reserve(tokens);
    }

    /// Appends a token.
    pub fn push(&mut self, token: u32) {
        let place = self.tokens.len() as u32;
        let before = match self.tokens.last() {
            Some(&previous) => self.last.insert((previous, token), place).unwrap_or(NONE),
            None => NONE,
        };
        self.tokens.push(token);
        self.before.push(before);
    }

    /// The longest match of the text's end, of several the latest.
    pub fn find(&self) -> Option<Match> {
        let end = self.tokens.len();
        let mut place = *self.before.last()?;
        let mut best: Option<Match> = None;
        for _ in 0..PLACES {
            if place == NONE {
                break;
            }
            let next = place as usize + 1;
            let agree = |back: &usize| self.tokens[next - back] == self.tokens[end - back];
            let length = (1..=next.min(LONGEST)).take_while(agree).count();
            if best.is_none_or(|best| length > best.length) {
                best = Some(Match { next, length });
            }
            if length == LONGEST {
                break;
            }
            place = self.before[place as usize];
        }
        best
    }

    /// Guesses `count` tokens: those behind the match, which go on as a loop where the text ends.
    pub fn guess(&self, found: Match, count: usize, guesses: &mut Vec<u32>) {
        let period = self.tokens.len() - found.next;
        guesses.extend((0..count).map(|index| self.tokens[found.next + index % period]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(tokens: &[u32], count: usize) -> Option<(usize, Vec<u32>)> {
        let lookup = Lookup::new(tokens);
        let found = lookup.find()?;
        let mut guesses = Vec::new();
        lookup.guess(found, count, &mut guesses);
        Some((found.length, guesses))
    }

    #[test]
    fn the_longest_match_is_taken_and_of_several_the_latest() {
        assert_eq!(guess(&[], 3), None);
        assert_eq!(guess(&[1, 2, 3], 3), None);
        assert_eq!(guess(&[1, 2, 9, 5, 1, 2], 3), Some((2, vec![9, 5, 1])));
        assert_eq!(guess(&[7, 1, 2, 8, 6, 1, 2, 9, 7, 1, 2], 2), Some((3, vec![8, 6])));
        assert_eq!(guess(&[1, 2, 8, 1, 2, 9, 5, 1, 2], 1), Some((2, vec![9])));
    }

    #[test]
    fn loops_go_on() {
        assert_eq!(guess(&[4, 4, 4], 4), Some((2, vec![4; 4])));
        assert_eq!(guess(&[1, 2, 3, 1, 2, 3, 1, 2], 5), Some((5, vec![3, 1, 2, 3, 1])));
    }

    proptest::proptest! {
        #[test]
        fn equals_a_search_of_the_whole_text(tokens in proptest::collection::vec(0u32..3, 0..40)) {
            let end = tokens.len();
            let matches = (1..end).map(|next| {
                (1..=next.min(LONGEST)).take_while(|back| tokens[next - back] == tokens[end - back]).count()
            });
            let best = matches.enumerate().filter(|&(_, length)| length >= 2).max_by_key(|&(at, length)| (length, at));
            let found = Lookup::new(&tokens).find();
            proptest::prop_assert_eq!(found, best.map(|(at, length)| Match { next: at + 1, length }));
        }
    }
}
