//! tarsdb columnar ABI, version 1, for Rust without std (docs/udf-abi.md has the bytes).
//!
//!     #![no_std]
//!     mod tars_udf;
//!     use tars_udf::{arguments, Column};
//!     #[no_mangle]
//!     pub unsafe extern "C" fn length(args: *mut Column, rows: u32) -> i32 { // (t TEXT) RETURNS INT
//!         let args = arguments(args, 2);
//!         for row in 0..rows as usize {
//!             args[1].values::<i32>(rows as usize)[row] = args[0].bytes(row).len() as i32;
//!         }
//!         0
//!     }
//!
//! The arguments come first, the output last. A STRICT function sees no NULL.

#![allow(dead_code, non_upper_case_globals)]

pub const TARS_BOOL: u32 = 1;
pub const TARS_INT16: u32 = 2;
pub const TARS_INT32: u32 = 3;
pub const TARS_INT64: u32 = 4;
pub const TARS_FLOAT32: u32 = 5;
pub const TARS_FLOAT64: u32 = 6;
pub const TARS_FIXED16: u32 = 7;
pub const TARS_UTF8: u32 = 8;
pub const TARS_BINARY: u32 = 9;
pub const TARS_VEC_F32: u32 = 10;
pub const TARS_VEC_F16: u32 = 11;
pub const TARS_VEC_I8: u32 = 12;
pub const TARS_VEC_BIT: u32 = 13;

/// A column; the arguments of a function are an array of these, the output is the last.
#[repr(C)]
pub struct Column {
    pub kind: u32,
    pub flags: u32, // bit 0: some rows are NULL; bit 1: one value for all rows
    pub data: *mut u8,
    pub data_bytes: u32,
    pub validity: *mut u8, // null: no NULLs
    pub offsets: *mut i32, // TEXT, BLOB, JSON
    pub width: u32,        // bytes a row takes; 0 for TEXT, BLOB, JSON
    pub parameter: u32,    // dimension of vectors, scale of DECIMAL
}

/// The descriptors a function was called with.
///
/// # Safety
/// `args` is what the database passed, `count` the number of arguments and one for the output.
pub unsafe fn arguments<'a>(args: *mut Column, count: usize) -> &'a mut [Column] {
    core::slice::from_raw_parts_mut(args, count)
}

impl Column {
    /// Values of a type of fixed width; of vectors `rows` times the dimension of them.
    ///
    /// # Safety
    /// `T` is the column's type and `count` the number of its values.
    pub unsafe fn values<'a, T>(&self, count: usize) -> &'a mut [T] {
        core::slice::from_raw_parts_mut(self.data as *mut T, count)
    }

    pub unsafe fn is_null(&self, row: usize) -> bool {
        !self.validity.is_null() && *self.validity.add(row >> 3) >> (row & 7) & 1 == 0
    }

    /// Make a row of the output NULL; its bitmap is there before the call.
    pub unsafe fn set_null(&mut self, row: usize) {
        *self.validity.add(row >> 3) &= !(1 << (row & 7));
    }

    /// The bytes of a row of TEXT, BLOB or JSON.
    pub unsafe fn bytes<'a>(&self, row: usize) -> &'a [u8] {
        let (start, stop) = (*self.offsets.add(row), *self.offsets.add(row + 1));
        core::slice::from_raw_parts(self.data.add(start as usize), (stop - start) as usize)
    }

    /// Write the output's rows in order: begin with room for all of them, then put each.
    pub unsafe fn begin(&mut self, capacity: u32) -> bool {
        self.data = tars_alloc(capacity);
        !self.data.is_null()
    }

    pub unsafe fn put(&mut self, row: usize, text: &[u8]) {
        let start = *self.offsets.add(row);
        core::ptr::copy_nonoverlapping(text.as_ptr(), self.data.add(start as usize), text.len());
        *self.offsets.add(row + 1) = start + text.len() as i32;
    }
}

// Capabilities: what a module uses of these is imported, and must be granted, WITH (allow = ...).
#[cfg(target_arch = "wasm32")]
#[link(wasm_import_module = "tars")]
extern "C" {
    pub fn log(text: *const u8, bytes: u32);
    /// The length of the key's value, which is written to `room` where it fits; -1: there is none.
    pub fn lookup(key: *const u8, bytes: u32, room: *mut u8, size: u32) -> i32;
    /// The bytes of the text's vector, which is written to `room` where it fits.
    pub fn embed(text: *const u8, bytes: u32, room: *mut f32, size: u32) -> i32;
}

#[no_mangle]
pub static tars_abi_v1: i32 = 1;

static mut TOP: usize = 0;

#[cfg(target_arch = "wasm32")]
extern "C" {
    static __heap_base: u8;
}

#[cfg(target_arch = "wasm32")]
#[no_mangle]
pub unsafe extern "C" fn tars_reset() {
    TOP = &__heap_base as *const u8 as usize;
}

#[cfg(target_arch = "wasm32")]
#[no_mangle]
pub unsafe extern "C" fn tars_alloc(size: u32) -> *mut u8 {
    use core::arch::wasm32::{memory_grow, memory_size};
    if TOP == 0 {
        tars_reset();
    }
    let start = (TOP + 15) & !15;
    let end = start as u64 + size as u64;
    if end > 0xffff_0000 {
        return core::ptr::null_mut();
    }
    let (pages, have) = ((end as usize + 0xffff) >> 16, memory_size(0));
    if pages > have && memory_grow(0, pages - have) == usize::MAX {
        return core::ptr::null_mut();
    }
    TOP = end as usize;
    start as *mut u8
}

/// Elsewhere the crate only compiles, for tests of what does not allocate.
#[cfg(not(target_arch = "wasm32"))]
pub unsafe fn tars_alloc(_size: u32) -> *mut u8 {
    core::ptr::null_mut()
}

#[cfg(target_arch = "wasm32")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}
