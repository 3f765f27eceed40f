#include <ffi.h>

// Addresses of libffi's type descriptors: Swift may not name mutable C globals.
static inline ffi_type *alps_ffi_pointer(void) { return &ffi_type_pointer; }
static inline ffi_type *alps_ffi_sint32(void) { return &ffi_type_sint32; }
static inline ffi_type *alps_ffi_uint32(void) { return &ffi_type_uint32; }
static inline ffi_type *alps_ffi_sint64(void) { return &ffi_type_sint64; }
static inline ffi_type *alps_ffi_uint64(void) { return &ffi_type_uint64; }
