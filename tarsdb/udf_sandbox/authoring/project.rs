//! NAME(t TEXT) RETURNS INT: how many words a text has. build.sh compiles it, NAME.sql loads it.
#![no_std]
mod tars_udf;
use tars_udf::{arguments, Column};

mod counting {
    pub fn words(text: &[u8]) -> i32 {
        let (mut count, mut inside) = (0, false);
        for byte in text {
            let letter = *byte > b' ';
            if letter && !inside {
                count += 1;
            }
            inside = letter;
        }
        count
    }
}

/// # Safety
/// Called by the database, with a column and an output.
#[no_mangle]
pub unsafe extern "C" fn NAME(args: *mut Column, rows: u32) -> i32 {
    let args = arguments(args, 2);
    let out = args[1].values::<i32>(rows as usize);
    for row in 0..rows as usize {
        out[row] = counting::words(args[0].bytes(row));
    }
    0
}
