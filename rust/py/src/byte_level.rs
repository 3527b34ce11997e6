//! The text of byte-level tokens, in which every byte is written as a printable character.
//!
//! The alphabet is GPT-2's (`bytes_to_unicode` in its `encoder.py`): bytes that are printable in Latin-1 stand for themselves, the
//! others, in order, for the characters from U+0100 on.

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;

use crate::arguments::{MOST_IDS, elements};
use crate::errors::parameter;

/// Whether a byte stands for itself.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..)
}

/// The bytes that the characters from U+0100 on stand for.
const SHIFTED: [u8; 68] = {
    let (mut found, mut count, mut byte) = ([0; 68], 0, 0);
    while byte < 256 {
        if !is_plain(byte as u8) {
            found[count] = byte as u8;
            count += 1;
        }
        byte += 1;
    }
    found
};

fn byte_of(character: char) -> Option<u8> {
    match u8::try_from(character) {
        Ok(byte) => is_plain(byte).then_some(byte),
        Err(_) => SHIFTED.get((character as usize).checked_sub(0x100)?).copied(),
    }
}

/// The text of tokens: of the bytes that their characters stand for, and of tokens with others as they are written. What is not UTF-8
/// becomes U+FFFD, one for each longest part that could have begun a character.
#[pyfunction]
pub(crate) fn byte_level_text(texts: &Bound<'_, PyAny>) -> PyResult<String> {
    let text = |text: Bound<'_, PyAny>| {
        text.extract::<PyBackedStr>().map_err(|_| parameter("texts", "must be texts"))
    };
    let texts = elements("texts", texts, MOST_IDS, text)?;
    let mut bytes = Vec::with_capacity(texts.iter().map(|text| text.len()).sum());
    for text in &texts {
        let start = bytes.len();
        for character in text.chars() {
            match byte_of(character) {
                Some(byte) => bytes.push(byte),
                None => {
                    bytes.truncate(start);
                    bytes.extend_from_slice(text.as_bytes());
                    break;
                }
            }
        }
    }
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}
