//! overlap_score(question TEXT, body TEXT) RETURNS DOUBLE: the share of a question's words that a text has,
//! letters of ASCII compared without case. Sorts what a search found by what it says.
#![no_std]
mod tars_udf;
use tars_udf::{arguments, Column};

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| !is_letter(*byte)).filter(|word| !word.is_empty())
}

fn overlap(question: &[u8], body: &[u8]) -> f64 {
    let (mut found, mut asked) = (0u32, 0u32);
    for word in words(question) {
        asked += 1;
        found += words(body).any(|other| other.eq_ignore_ascii_case(word)) as u32;
    }
    if asked == 0 { 0.0 } else { found as f64 / asked as f64 }
}

/// # Safety
/// Called by the database, with two columns and an output.
#[no_mangle]
pub unsafe extern "C" fn overlap_score(args: *mut Column, rows: u32) -> i32 {
    let args = arguments(args, 3);
    let out = args[2].values::<f64>(rows as usize);
    for row in 0..rows as usize {
        out[row] = overlap(args[0].bytes(row), args[1].bytes(row));
    }
    0
}
