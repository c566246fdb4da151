// The loops of token_resample for one instruction set; CMakeLists.txt gives this file its flags.
#include "token_resample/rows.inl"

namespace zoomzero {

const TokenRows kTokenRowsDefault = {ZOOMZERO_TOKEN_ROWS};

}  // namespace zoomzero
