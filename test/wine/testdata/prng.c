/* bcryptprimitives.dll for Wines that have none: Go programs take the random
   numbers of their runtime from it (ProcessPrng). */
#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length)
{
	return RtlGenRandom(data, length);
}
