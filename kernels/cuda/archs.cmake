# Stops unless DMS_CUDA_ARCHS is a list of compute capabilities that the kernels are written for: 80
# (bf16 on tensor cores, cp.async) and up, as nvcc and CMake spell them.
set(dms_archs_hint "expected numbers from 80 on with semicolons between them, as 80 or 90;100;120")
if("${DMS_CUDA_ARCHS}" STREQUAL "")
  message(FATAL_ERROR "DMS_CUDA_ARCHS is empty, ${dms_archs_hint}")
endif()
foreach(arch IN LISTS DMS_CUDA_ARCHS)
  string(REGEX MATCH "^([1-9][0-9][0-9]?)[af]?(-real|-virtual)?$" dms_arch_known "${arch}")
  if(NOT dms_arch_known OR CMAKE_MATCH_1 LESS 80)
    message(FATAL_ERROR
      "DMS_CUDA_ARCHS is \"${DMS_CUDA_ARCHS}\" and has \"${arch}\" in it, ${dms_archs_hint}")
  endif()
endforeach()
